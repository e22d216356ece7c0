"""A replica ends with its engine, and not before."""

import asyncio

from serve.lifeline import POLL_S, die_with


class Engine:
    """One that is dead once somebody says so."""

    def __init__(self) -> None:
        self.errored = False


def ended(*, dies: bool, leaving: bool) -> list[str]:
    """Who ended the process, a few looks after the engine did or did not die."""
    engine, ends = Engine(), list[str]()

    async def run() -> None:
        watch = asyncio.ensure_future(die_with(engine, leaving=lambda: leaving, end=lambda: ends.append("ended")))
        await asyncio.sleep(2 * POLL_S)
        assert ends == []
        engine.errored = dies
        await asyncio.sleep(4 * POLL_S)
        watch.cancel()

    asyncio.run(run())
    return ends


def test_a_replica_ends_once_with_its_engine():
    assert ended(dies=True, leaving=False) == ["ended"]


def test_it_goes_on_while_the_engine_lives():
    assert ended(dies=False, leaving=False) == []


def test_an_engine_that_is_stopped_with_its_replica_is_no_accident():
    assert ended(dies=True, leaving=True) == []
