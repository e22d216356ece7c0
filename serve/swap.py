"""New weights into a running engine: hold, drain, load, verify, admit.

    SERVING -> (stage) -> HOLDING -> (drained) -> LOADING -> VERIFYING -> SERVING the new release
                                                     └─ on any failure -> LOADING the old one -> SERVING it

New requests wait while requests of the old version finish, so no response mixes versions and none fails.
Nothing is admitted before the engine has reproduced the release's fingerprint.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from sdpo_ray.errors import SwapError
from sdpo_ray.records import Fingerprint, Release

logger = logging.getLogger(__name__)

TOLERANCE = {"float32": 2e-3, "bfloat16": 0.05}
"""Largest mean |difference| in nats between the fingerprint and the engine: engines differ by about 1e-5 in
fp32; a stale output head is off by whole nats."""


class Engine(Protocol):
    """What a swap needs of an engine. `serve.engine.RecordingLLM` is one."""

    async def stage(self, path: str) -> None: ...
    async def drained(self) -> None: ...
    async def load(self, policy_version: int) -> None: ...
    async def logprobs(self, token_ids: tuple[int, ...]) -> tuple[float, ...]: ...


class Gate:
    """Lets requests into the engine, or makes them wait while it is held."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._entering = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def entering(self) -> AsyncIterator[None]:
        """Wait until requests are admitted, then count this one until the engine has it."""
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
        """Admit nobody else; returns once everyone who was let in has reached the engine."""
        self._open.clear()
        await self._idle.wait()

    def admit(self) -> None:
        self._open.set()


class Swapper:
    """Makes one engine serve one release after another. `serving` is what answers now."""

    def __init__(self, engine: Engine, gate: Gate, serving: Release, *, dtype: str) -> None:
        self._engine = engine
        self._gate = gate
        self._tolerance = TOLERANCE[dtype]
        self.serving = serving
        self.stall_s = 0.0
        """Seconds that the last swap held new requests."""
        self.broken = False
        """True when not even the old weights could be restored: the replica must be restarted."""

    async def to(self, release: Release) -> None:
        """Serve `release`. Raises SwapError, with the old release still serving, when it does not check out."""
        try:
            await self._engine.stage(release.path)
        except Exception as error:
            raise SwapError(f"v{release.policy_version} cannot be read: {error}") from error
        began = time.monotonic()
        await self._gate.hold()
        try:
            await self._engine.drained()
            try:
                await self._engine.load(release.policy_version)
                await self.verify(release)
            except Exception as error:
                await self._restore(error)
                raise SwapError(f"v{release.policy_version} was loaded and undone: {error}") from error
            self.serving = release
        finally:
            self.stall_s = time.monotonic() - began
            if not self.broken:
                self._gate.admit()
        logger.info("serving v%d; new requests waited %.3f s", release.policy_version, self.stall_s)

    async def verify(self, release: Release) -> None:
        """Raise SwapError unless the engine reproduces the release's fingerprint."""
        difference = mean_difference(release.fingerprint, await self._engine.logprobs(release.fingerprint.token_ids))
        if not difference <= self._tolerance:
            raise SwapError(f"log-probs differ from the fingerprint by {difference:.4f} nats on average")

    async def _restore(self, cause: Exception) -> None:
        try:
            await self._engine.stage(self.serving.path)
            await self._engine.load(self.serving.policy_version)
            await self.verify(self.serving)
        except Exception:
            self.broken = True
            logger.exception("v%d could not be restored after: %s", self.serving.policy_version, cause)
            raise


def mean_difference(fingerprint: Fingerprint, logprobs: tuple[float, ...]) -> float:
    """Mean absolute difference, nats; infinite when the lengths differ or a value is not a number."""
    if len(logprobs) != len(fingerprint.logprobs):
        return math.inf
    total = sum(abs(a - b) for a, b in zip(fingerprint.logprobs, logprobs, strict=True))
    return total / len(logprobs) if math.isfinite(total) else math.inf
