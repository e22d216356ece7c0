"""Swaps new weights into a running engine: hold, drain, load, verify, admit.

    SERVING -> (stage) -> (a replica's slot) -> HOLDING -> (drained) -> LOADING -> VERIFYING -> SERVING the new release
                              ^                    |                        └─ on any failure -> the old one again
                              └─ patience is over ─┘

New requests wait while requests of the old version finish, so no response mixes versions and none fails. One long
response does not delay others for long: a hold that is not drained in time is lifted and tried again later, with twice
the patience. No request is admitted before the engine has reproduced the release's fingerprint.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from sdpo_ray.errors import SwapError
from sdpo_ray.records import FileDigest, Fingerprint, Release

logger = logging.getLogger(__name__)

TOLERANCE = {"float32": 2e-3, "bfloat16": 0.05}
"""Largest mean |difference| in nats between the fingerprint and the engine. Engines differ by about 1e-5 in fp32; a
stale output head is off by whole nats."""
PATIENCE_S = 0.25
"""How long the first hold waits for running requests. Most responses end within it."""
DRAIN_S = 10.0
"""How long a replica that gets no new requests lets its responses finish before it holds any."""

UpdateSlot = Callable[[], AbstractAsyncContextManager[bool]]
"""Entered by one replica of the run at a time; yields whether new requests go to other replicas meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StallPhases:
    """Seconds of one hold of new requests, by what they were spent on."""

    drain_s: float = 0.0
    """Until the requests that were in the engine had finished."""
    load_s: float = 0.0
    """Until the staged weights were in the model; 0 for a hold that was given up before."""
    verify_s: float = 0.0
    """Until the fingerprint was reproduced, or the old weights were restored."""

    @property
    def total_s(self) -> float:
        return self.drain_s + self.load_s + self.verify_s


class SwappableEngine(Protocol):
    """What a swap needs of an engine. `serve.engine.swappable_engine.SwappableLLM` is one."""

    async def stage(self, path: str, digests: Sequence[FileDigest]) -> None: ...
    async def drained(self) -> None: ...
    async def load(self, policy_version: int) -> None: ...
    async def logprobs(self, token_ids: tuple[int, ...]) -> tuple[float, ...]: ...


class RequestGate:
    """Lets requests into the engine, or makes them wait while it is held."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._shut = False
        self._entering = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def enter(self, *, admitted: bool = False) -> AsyncIterator[None]:
        """Wait until requests are admitted, then count this one until the engine has it.

        The rest of a request of which part is `admitted` enters while the gate is held, too: the swap waits for the
        part that is in the engine, so all of it is of one version.
        """
        if self._shut or not admitted:
            await self._open.wait()
        self._entering += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._entering -= 1
            if self._entering == 0:
                self._idle.set()

    async def hold(self) -> None:
        """Admit no new request; return once the engine has every request that was let in."""
        self._open.clear()
        await self._idle.wait()

    async def shut(self) -> None:
        """Admit nothing at all, rests of requests included; return as `hold` does."""
        self._shut = True
        await self._idle.wait()

    def admit(self) -> None:
        """Admit requests again."""
        self._shut = False
        self._open.set()


def _no_slot() -> AbstractAsyncContextManager[bool]:
    return nullcontext(False)


class Swapper:
    """Makes one engine serve one release after another. `serving` is the release that answers now."""

    def __init__(
        self,
        engine: SwappableEngine,
        gate: RequestGate,
        serving: Release,
        *,
        dtype: str,
        slot: UpdateSlot = _no_slot,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._engine = engine
        self._gate = gate
        self._tolerance = TOLERANCE[dtype]
        self._slot = slot
        self._patience_s = patience_s
        self.serving = serving
        self.stall = StallPhases()
        """The longest hold of the last swap."""
        self.broken = False
        """True when not even the old weights could be restored: the replica must be restarted."""

    async def to(self, release: Release) -> None:
        """Serve `release`. Raises SwapError, with the old release still serving, when it fails verification."""
        try:
            await self._engine.stage(release.path, release.digests)
        except Exception as error:
            raise SwapError(f"v{release.policy_version} cannot be read: {error}") from error
        self.stall, patience_s = StallPhases(), self._patience_s
        async with self._slot() as rerouted:
            if rerouted:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._engine.drained(), DRAIN_S)
            while not await self._swapped(release, patience_s):
                await asyncio.sleep(patience_s)
                patience_s *= 2
        logger.info(
            "serving v%d; new requests waited %.3f s: drain %.3f, load %.3f, verify %.3f",
            release.policy_version,
            self.stall.total_s,
            self.stall.drain_s,
            self.stall.load_s,
            self.stall.verify_s,
        )

    async def verify(self, release: Release) -> None:
        """Raise SwapError unless the engine reproduces the release's fingerprint."""
        require_match(
            release.fingerprint, await self._engine.logprobs(release.fingerprint.token_ids), tolerance=self._tolerance
        )

    async def _swapped(self, release: Release, patience_s: float) -> bool:
        """Swap with new requests held; False, with the hold lifted, when old requests take longer than `patience_s`."""
        times = [time.monotonic()]
        await self._gate.hold()
        try:
            try:
                async with asyncio.timeout(patience_s):
                    await self._engine.drained()
                    await self._gate.shut()
                    await self._engine.drained()
            except TimeoutError:
                return False
            times.append(time.monotonic())
            try:
                await self._engine.load(release.policy_version)
                times.append(time.monotonic())
                await self.verify(release)
            except Exception as error:
                await self._restore(error)
                raise SwapError(f"v{release.policy_version} was loaded and undone: {error}") from error
            self.serving, self.broken = release, False
            return True
        finally:
            times.append(time.monotonic())
            self.stall = max(self.stall, _phases(times), key=lambda phases: phases.total_s)
            if not self.broken:
                self._gate.admit()

    async def _restore(self, cause: Exception) -> None:
        try:
            await self._engine.stage(self.serving.path, self.serving.digests)
            await self._engine.load(self.serving.policy_version)
            await self.verify(self.serving)
        except Exception:
            self.broken = True
            logger.exception("v%d could not be restored after: %s", self.serving.policy_version, cause)
            raise


def _phases(times: Sequence[float]) -> StallPhases:
    """Return the phases between the start of a hold, each phase that was finished, and the end of the hold."""
    names = ("drain_s", "load_s", "verify_s")
    return StallPhases(**{name: end - start for name, (start, end) in zip(names, pairwise(times), strict=False)})


def require_match(fingerprint: Fingerprint, logprobs: tuple[float, ...], *, tolerance: float) -> None:
    """Raise SwapError where an engine's log-probs differ from the fingerprint by more than `tolerance` nats a token."""
    difference = mean_difference(fingerprint, logprobs)
    if not difference <= tolerance:
        raise SwapError(f"log-probs differ from the fingerprint by {difference:.4f} nats on average")


def mean_difference(fingerprint: Fingerprint, logprobs: tuple[float, ...]) -> float:
    """Return the mean absolute difference in nats; infinite when lengths differ or a value is not a number."""
    if len(logprobs) != len(fingerprint.logprobs):
        return math.inf
    total = sum(abs(a - b) for a, b in zip(fingerprint.logprobs, logprobs, strict=True))
    return total / len(logprobs) if math.isfinite(total) else math.inf
