"""One `Limiter` for all replicas of an application: a small actor of Ray's, which they find by name.

It comes when it is first needed and goes when nobody has asked for a while. While it is away, after a crash or with the
node it was on, requests pass and are counted: better too many than none.
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
"""Longer than any window: whoever comes afterwards begins anew in any case."""


class RateLimiterActor(LocalRateLimiter):
    """What the actor runs."""

    def __init__(self, ticket_s: float) -> None:
        super().__init__(ticket_s)
        self._idle_s = max(_IDLE_S, ticket_s)
        self._asked_at_s = time.monotonic()
        self._going: asyncio.Future[None] | None = None
        self._given_up: dict[str, float] = {}
        """Tickets that came back before they were asked for, and when: Ray keeps no order among calls."""

    async def enter(self, who: str, limits: LimitsConfig, ticket: str = "") -> RateLimitDecision:
        self._asked_at_s = time.monotonic()
        self._going = self._going or asyncio.ensure_future(self._go_when_idle())
        if self._given_up.pop(ticket, None) is not None:
            return RateLimitDecision()
        return await super().enter(who, limits, ticket)

    async def leave(self, who: str, limits: LimitsConfig, ticket: str, tokens: int) -> None:
        if ticket and not self.holds(who, ticket):
            now = time.monotonic()
            self._given_up = {each: at for each, at in self._given_up.items() if at > now - self._idle_s} | {
                ticket: now
            }
        await super().leave(who, limits, ticket, tokens)

    async def _go_when_idle(self) -> None:
        while (left_s := self._asked_at_s + self._idle_s - time.monotonic()) > 0:
            await asyncio.sleep(left_s)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


class SharedRateLimiter:
    """The `RateLimiter` of a replica that is not alone."""

    def __init__(self, application: str, ticket_s: float) -> None:
        self.counters = Counters.empty()
        """`away`: requests that nobody counted, since the actor did not answer."""
        self._name = f"limits of {application}"
        self._ticket_s = ticket_s
        self._actor: Any = None

    async def enter(self, who: str, limits: LimitsConfig) -> RateLimitDecision:
        ticket = uuid4().hex
        try:
            async with asyncio.timeout(_PATIENCE_S):
                if self._actor is None:
                    self._actor = await asyncio.to_thread(self._find)
                decision: RateLimitDecision = await self._actor.enter.remote(who, limits, ticket)
                return decision
        except (RayError, TimeoutError, ValueError) as error:
            # ValueError: the name is taken by one that is just going.
            self.counters.add("away")
            logger.warning("limits are not kept now: %s", type(error).__name__)
            await self.leave(who, limits, ticket, 0)
            self._actor = None
            return RateLimitDecision()
        except asyncio.CancelledError:
            await self.leave(who, limits, ticket, 0)
            raise

    async def leave(self, who: str, limits: LimitsConfig, ticket: str, tokens: int) -> None:
        if self._actor is not None:
            # Nobody waits for it, nor for its failure.
            self._actor.leave.remote(who, limits, ticket, tokens)

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
