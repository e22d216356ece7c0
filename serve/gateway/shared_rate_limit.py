"""One rate limiter for all replicas of an application: a small Ray actor, which they find by name.

It starts when it is first needed and exits when it was idle for a while. While it is unavailable, after a crash or with
the node it was on, requests are admitted and counted: a failing limiter must not be an outage.
"""

import asyncio
import logging
import time
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayError

from sdpo_ray.config import LimitsConfig
from sdpo_ray.telemetry import Counters
from serve.gateway.rate_limit import LocalRateLimiter, RateLimitDecision

logger = logging.getLogger("ray.serve")

_NAMESPACE = "sdpo-ray"
_PATIENCE_S = 1.0
_IDLE_S = 600.0
"""Longer than any window: an actor that starts later misses no usage that still counts."""


class RateLimiterActor(LocalRateLimiter):
    """`LocalRateLimiter` as the actor runs it."""

    def __init__(self, ticket_s: float) -> None:
        super().__init__(ticket_s)
        self._idle_s = max(_IDLE_S, ticket_s)
        self._last_call_s = time.monotonic()
        self._exiting: asyncio.Future[None] | None = None
        self._released_early: dict[str, float] = {}
        """Tickets that were released before they were acquired, and when: Ray keeps no order among calls."""

    async def acquire(self, who: str, limits: LimitsConfig, ticket: str = "") -> RateLimitDecision:
        self._last_call_s = time.monotonic()
        self._exiting = self._exiting or asyncio.ensure_future(self._exit_when_idle())
        if self._released_early.pop(ticket, None) is not None:
            return RateLimitDecision()
        return await super().acquire(who, limits, ticket)

    async def release(self, who: str, limits: LimitsConfig, ticket: str, tokens: int) -> None:
        if ticket and not self.holds(who, ticket):
            now = time.monotonic()
            recent = {each: at_s for each, at_s in self._released_early.items() if at_s > now - self._idle_s}
            self._released_early = {**recent, ticket: now}
        await super().release(who, limits, ticket, tokens)

    async def _exit_when_idle(self) -> None:
        while (left_s := self._last_call_s + self._idle_s - time.monotonic()) > 0:
            await asyncio.sleep(left_s)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


class SharedRateLimiter:
    """`RateLimiter` of one of several replicas, by way of the actor."""

    def __init__(self, application: str, ticket_s: float) -> None:
        self.counters = Counters.empty()
        """`unavailable`: requests that were not counted, because the actor did not answer."""
        self._name = f"limits of {application}"
        self._ticket_s = ticket_s
        self._actor: Any = None

    async def acquire(self, who: str, limits: LimitsConfig) -> RateLimitDecision:
        ticket = uuid4().hex
        try:
            async with asyncio.timeout(_PATIENCE_S):
                if self._actor is None:
                    self._actor = await asyncio.to_thread(self._find)
                decision: RateLimitDecision = await self._actor.acquire.remote(who, limits, ticket)
                return decision
        except (RayError, TimeoutError, ValueError) as error:
            # ValueError: the name belongs to an actor that is just exiting.
            self.counters.add("unavailable")
            logger.warning("rate limits are not enforced now: %s", type(error).__name__)
            await self.release(who, limits, ticket, 0)
            self._actor = None
            return RateLimitDecision()
        except asyncio.CancelledError:
            await self.release(who, limits, ticket, 0)
            raise

    async def release(self, who: str, limits: LimitsConfig, ticket: str, tokens: int) -> None:
        if self._actor is not None:
            # Neither its result nor its failure is awaited.
            self._actor.release.remote(who, limits, ticket, tokens)

    def _find(self) -> Any:
        options: dict[str, Any] = {
            "name": self._name,
            "namespace": _NAMESPACE,
            "get_if_exists": True,
            "lifetime": "detached",
            "num_cpus": 0,
            "max_restarts": -1,
            "max_concurrency": 1000,
        }
        return ray.remote(RateLimiterActor).options(**options).remote(self._ticket_s)
