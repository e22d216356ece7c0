"""The swap's state machine, with an engine that does what a test says."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from sdpo_ray.errors import SwapError
from sdpo_ray.records import FileDigest, Fingerprint, Release
from serve.weights.swapper import RequestGate, Swapper, mean_difference


def release(version: int) -> Release:
    fingerprint = Fingerprint(token_ids=(1, 2, 3), logprobs=(-float(version), -1.0))
    return Release(policy_version=version, path=f"v{version}", previous_version=None, fingerprint=fingerprint)


class FakeEngine:
    """Serves whatever was staged last; `broken` paths cannot be read, `wrong` ones load as something else."""

    def __init__(self, *, broken: set[str] = frozenset(), wrong: set[str] = frozenset()) -> None:
        self.broken, self.wrong = set(broken), set(wrong)
        self.staged, self.loaded = "", "v1"
        self.in_flight = 0
        self.steps: list[str] = []

    async def stage(self, path: str, digests: Sequence[FileDigest]) -> None:
        self.steps.append(f"stage {path}")
        if path in self.broken:
            raise FileNotFoundError(path)
        self.staged = path

    async def drained(self) -> None:
        self.steps.append("drained")
        while self.in_flight:
            await asyncio.sleep(0)

    async def load(self, policy_version: int) -> None:
        assert self.in_flight == 0, "weights changed under a running request"
        self.steps.append(f"load v{policy_version}")
        self.loaded = self.staged

    async def logprobs(self, token_ids: tuple[int, ...]) -> tuple[float, ...]:
        if self.loaded in self.wrong:
            return (-99.0, -1.0)
        return (-float(self.loaded.removeprefix("v")), -1.0)


class SlowEngine(FakeEngine):
    """Takes 0.02 s to drain, 0.04 s to load and 0.08 s to give log-probs."""

    async def drained(self) -> None:
        if not self.steps.count("drained"):
            await asyncio.sleep(0.02)
        await super().drained()

    async def load(self, policy_version: int) -> None:
        await asyncio.sleep(0.04)
        await super().load(policy_version)

    async def logprobs(self, token_ids: tuple[int, ...]) -> tuple[float, ...]:
        await asyncio.sleep(0.08)
        return await super().logprobs(token_ids)


def test_the_stall_of_a_swap_is_told_by_phase():
    async def run() -> Swapper:
        swapper = Swapper(SlowEngine(), RequestGate(), release(1), dtype="float32")
        await swapper.to(release(2))
        return swapper

    stall = asyncio.run(run()).stall
    assert stall.drain_s >= 0.02
    assert stall.load_s >= 0.04
    assert stall.verify_s >= 0.08
    assert stall.total_s == pytest.approx(stall.drain_s + stall.load_s + stall.verify_s)


def test_a_swap_stages_drains_loads_verifies_and_admits():
    async def run() -> None:
        engine, gate = FakeEngine(), RequestGate()
        swapper = Swapper(engine, gate, release(1), dtype="float32")
        await swapper.to(release(2))
        assert engine.steps == ["stage v2", "drained", "drained", "load v2"]
        assert swapper.serving == release(2)
        async with asyncio.timeout(1), gate.enter():
            pass

    asyncio.run(run())


def test_unreadable_weights_hold_no_request_and_change_nothing():
    async def run() -> None:
        engine = FakeEngine(broken={"v2"})
        swapper = Swapper(engine, RequestGate(), release(1), dtype="float32")
        with pytest.raises(SwapError, match="cannot be read"):
            await swapper.to(release(2))
        assert engine.steps == ["stage v2"]
        assert swapper.serving == release(1)

    asyncio.run(run())


def test_weights_that_do_not_verify_are_undone_before_a_request_is_admitted():
    async def run() -> None:
        engine, gate = FakeEngine(wrong={"v2"}), RequestGate()
        swapper = Swapper(engine, gate, release(1), dtype="float32")
        with pytest.raises(SwapError, match="undone"):
            await swapper.to(release(2))
        assert engine.steps == ["stage v2", "drained", "drained", "load v2", "stage v1", "load v1"]
        assert swapper.serving == release(1)
        assert not swapper.broken
        async with asyncio.timeout(1), gate.enter():
            assert engine.loaded == "v1"

    asyncio.run(run())


def test_a_replica_that_cannot_restore_its_weights_admits_no_request_and_is_broken():
    async def run() -> None:
        engine, gate = FakeEngine(wrong={"v2"}, broken={"v1"}), RequestGate()
        swapper = Swapper(engine, gate, release(1), dtype="float32")
        with pytest.raises(FileNotFoundError):
            await swapper.to(release(2))
        assert swapper.broken
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), gate.enter():
                pass

    asyncio.run(run())


def test_requests_wait_for_the_swap_and_the_swap_waits_for_requests():
    async def run() -> None:
        engine, gate = FakeEngine(), RequestGate()
        swapper = Swapper(engine, gate, release(1), dtype="float32")
        seen: list[tuple[str, str]] = []

        async def request(seconds: float) -> None:
            async with gate.enter():
                engine.in_flight += 1
            began = engine.loaded
            await asyncio.sleep(seconds)
            seen.append((began, engine.loaded))
            engine.in_flight -= 1

        running = asyncio.ensure_future(request(0.05))
        await asyncio.sleep(0.01)
        swap = asyncio.ensure_future(swapper.to(release(2)))
        await asyncio.sleep(0.01)
        late = asyncio.ensure_future(request(0.01))
        await asyncio.gather(running, swap, late)
        assert seen == [("v1", "v1"), ("v2", "v2")]

    asyncio.run(run())


def test_a_long_answer_keeps_others_waiting_only_for_as_long_as_patience_lasts():
    async def run() -> None:
        engine, gate = FakeEngine(), RequestGate()
        swapper = Swapper(engine, gate, release(1), dtype="float32", patience_s=0.02)
        engine.in_flight = 1
        swap = asyncio.ensure_future(swapper.to(release(2)))
        waited = []
        for hold in range(1, 4):
            while engine.steps.count("drained") < hold:
                await asyncio.sleep(0.001)
            async with asyncio.timeout(1), gate.enter():
                waited.append(engine.loaded)
        # The old policy answered each time; the next time they would wait twice as long.
        assert waited == ["v1"] * 3
        engine.in_flight = 0
        await swap
        assert (swapper.serving, engine.loaded) == (release(2), "v2")

    asyncio.run(run())


def test_the_rest_of_a_request_that_has_begun_goes_in_beside_it_and_a_new_one_waits():
    async def run() -> None:
        engine, gate = FakeEngine(), RequestGate()
        swapper = Swapper(engine, gate, release(1), dtype="float32", patience_s=5)

        async def new() -> str:
            async with gate.enter():
                return engine.loaded

        engine.in_flight = 1
        swap = asyncio.ensure_future(swapper.to(release(2)))
        await asyncio.sleep(0.01)
        async with asyncio.timeout(1), gate.enter(admitted=True):
            engine.in_flight += 1
        late = asyncio.ensure_future(new())
        engine.in_flight -= 1
        await asyncio.sleep(0.01)
        assert engine.loaded == "v1"
        engine.in_flight -= 1
        await swap
        assert await late == "v2"

    asyncio.run(run())


def test_no_request_enters_while_weights_change():
    async def run() -> None:
        gate = RequestGate()
        met: list[str] = []

        class Slow(FakeEngine):
            async def load(self, policy_version: int) -> None:
                rest = asyncio.ensure_future(enter())
                await asyncio.sleep(0.02)
                assert not rest.done()
                await super().load(policy_version)

        async def enter() -> None:
            async with gate.enter(admitted=True):
                met.append(engine.loaded)

        engine = Slow()
        await Swapper(engine, gate, release(1), dtype="float32").to(release(2))
        await asyncio.sleep(0.01)
        assert met == ["v2"]

    asyncio.run(run())


def test_a_drained_replica_holds_no_request_while_its_responses_finish():
    async def run() -> None:
        engine, gate = FakeEngine(), RequestGate()
        away: list[str] = []

        @asynccontextmanager
        async def turn() -> AsyncIterator[bool]:
            away.append("away")
            yield True
            away.append("back")

        swapper = Swapper(engine, gate, release(1), dtype="float32", slot=turn)
        engine.in_flight = 1
        swap = asyncio.ensure_future(swapper.to(release(2)))
        await asyncio.sleep(0.05)
        async with asyncio.timeout(1), gate.enter():
            assert (engine.loaded, away) == ("v1", ["away"])
        engine.in_flight = 0
        await swap
        assert (engine.loaded, away) == ("v2", ["away", "back"])

    asyncio.run(run())


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [((-1.0, -2.0), 0.0), ((-1.5, -2.25), 0.375), ((-1.0,), math.inf), ((-1.0, math.nan), math.inf)],
)
def test_the_difference_is_a_mean_in_nats_and_infinite_where_it_means_nothing(logprobs, expected):
    assert mean_difference(Fingerprint(token_ids=(1, 2, 3), logprobs=(-1.0, -2.0)), logprobs) == expected
