import asyncio
import threading
from concurrent.futures import Future

import pytest

from sdpo_ray.capture.future_bridge import settled


def futures(number: int) -> list["Future[int]"]:
    made: list[Future[int]] = [Future() for _ in range(number)]
    for each in made:
        each.set_running_or_notify_cancel()
    return made


def finish(each: "Future[int]", number: int) -> None:
    each.set_exception(OSError(f"no {number}")) if number % 5 == 0 else each.set_result(number)


def test_each_waiter_gets_its_own_result_or_error_from_any_thread():
    made = futures(1000)

    async def main() -> list[int | BaseException]:
        waiting = [asyncio.create_task(settled(each)) for each in made]
        await asyncio.sleep(0)
        halves = [
            threading.Thread(target=lambda part=part: [finish(made[n], n) for n in range(part, 1000, 2)])
            for part in (0, 1)
        ]
        for each in halves:
            each.start()
        return await asyncio.gather(*waiting, return_exceptions=True)

    results = asyncio.run(main())
    for number, result in enumerate(results):
        assert str(result) == (f"no {number}" if number % 5 == 0 else str(number))


def test_futures_done_together_wake_the_loop_once(monkeypatch):
    made = futures(64)

    async def main() -> int:
        loop = asyncio.get_running_loop()
        waiting = [asyncio.create_task(settled(each)) for each in made]
        await asyncio.sleep(0)
        wake, woken = loop.call_soon_threadsafe, []
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: (woken.append(args), wake(*args)))
        for each in made:
            each.set_result(1)
        await asyncio.gather(*waiting)
        return len(woken)

    assert asyncio.run(main()) == 1


def test_many_tasks_await_one_future_and_a_cancelled_one_disturbs_no_other():
    (shared,) = futures(1)

    async def main() -> list[int]:
        waiting = [asyncio.create_task(settled(shared)) for _ in range(8)]
        await asyncio.sleep(0)
        waiting[3].cancel()
        await asyncio.sleep(0)
        threading.Thread(target=lambda: shared.set_result(5)).start()
        told = await asyncio.gather(*(each for each in waiting if each is not waiting[3]))
        return [*told, await settled(shared)]

    assert asyncio.run(main()) == [5] * 8


def test_a_future_that_is_done_already_returns_at_once():
    (done,) = futures(1)
    done.set_result(7)
    assert asyncio.run(settled(done)) == 7


def test_a_cancelled_task_cancels_no_future_and_disturbs_no_other():
    first, second = futures(2)

    async def main() -> int:
        gone, stays = asyncio.create_task(settled(first)), asyncio.create_task(settled(second))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        first.set_result(1)
        second.set_result(2)
        return await stays

    assert asyncio.run(main()) == 2
    assert first.result() == 1


def test_a_loop_that_is_closed_is_not_woken_and_the_next_one_is():
    late, early = futures(2)

    async def leave() -> None:
        asyncio.create_task(settled(late))  # noqa: RUF006
        await asyncio.sleep(0)

    asyncio.run(leave())
    late.set_result(1)
    early.set_result(2)
    assert asyncio.run(settled(early)) == 2
