"""A replica ends with its engine, and not before."""

import asyncio

import pytest

from serve.lifecycle import engine_watchdog
from serve.lifecycle.engine_watchdog import POLL_S, watch_engine


class Engine:
    """Dead once `errored` is set; answers pings unless it is stopped."""

    def __init__(self) -> None:
        self.errored = self.stopped = self.killed = False
        self.died = asyncio.Event()

    async def ping(self) -> None:
        while self.stopped:
            await asyncio.sleep(POLL_S)

    def kill(self) -> None:
        self.killed = True


def ended(*, dies: bool = False, stops: bool = False, leaving: bool = False, patience_s: float = 60) -> list[str]:
    """What became of the process, a few looks after the engine died, stopped, or neither."""
    engine, ends = Engine(), list[str]()

    async def run() -> None:
        watch = asyncio.ensure_future(
            watch_engine(
                engine,
                patience_s=patience_s,
                stopping=lambda: leaving,
                exit_process=lambda: ends.append("engine killed" if engine.killed else "ended"),
            )
        )
        await asyncio.sleep(2 * POLL_S)
        assert ends == []
        engine.errored, engine.stopped = dies, stops
        await asyncio.sleep(40 * POLL_S)
        watch.cancel()

    asyncio.run(run())
    return ends


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_watchdog, "PING_S", POLL_S)


def test_a_replica_ends_once_with_its_engine():
    assert ended(dies=True) == ["ended"]


def test_a_failed_request_ends_the_replica_without_a_poll():
    engine, ends = Engine(), list[str]()

    async def run() -> None:
        watch = asyncio.ensure_future(
            watch_engine(engine, patience_s=60, stopping=lambda: False, exit_process=lambda: ends.append("ended"))
        )
        await asyncio.sleep(0)
        engine.died.set()
        await watch

    asyncio.run(run())
    assert ends == ["ended"]


def test_it_goes_on_while_the_engine_lives():
    assert ended(patience_s=POLL_S) == []


def test_an_engine_that_answers_nothing_is_killed_and_the_replica_ends_with_it():
    assert ended(stops=True, patience_s=2 * POLL_S) == ["engine killed"]


def test_an_engine_that_is_slow_to_answer_is_waited_for():
    assert ended(stops=True, patience_s=60) == []


@pytest.mark.parametrize("how", ["dies", "stops"])
def test_an_engine_that_is_stopped_with_its_replica_is_not_reported(how: str):
    assert ended(**{how: True}, leaving=True, patience_s=2 * POLL_S) == []
