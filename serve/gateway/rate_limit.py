"""Rate limits of one API key: requests and tokens a minute, and requests at once.

A sliding window counter: the present minute counts whole, and the one before by the share of it that is less than a
minute ago (`limits`, https://limits.readthedocs.io/en/stable/strategies.html#sliding-window-counter). A request's
tokens are known when it ends: they are charged then, whatever the limit, and new requests are refused until the excess
has left the windows.
"""

import math
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Protocol
from uuid import uuid4

from limits.aio.storage import MemoryStorage

from sdpo_ray.config import LimitsConfig

_MINUTE = 60
BUSY_RETRY_S = 1
"""Retry-After where the caller's own requests must end first; when they do is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitUsage:
    """Usage of one limit. Made by `LocalRateLimiter`."""

    before: int
    """Units used in the minute before this one."""
    before_s: float
    """Seconds for which that still counts, less and less."""
    now: int
    now_s: float
    """Seconds until this minute's usage no longer counts."""

    @property
    def used(self) -> float:
        return self.before * self.before_s / _MINUTE + self.now

    def seconds_until_under(self, limit: int) -> float:
        """Return how long until less than `limit` is used, without further use."""
        if self.used < limit:
            return 0.0
        if self.now < limit:
            return self.before_s - (limit - self.now) * _MINUTE / self.before
        return self.now_s - limit * _MINUTE / self.now

    @property
    def seconds_until_unused(self) -> float:
        return self.now_s if self.now else self.before_s if self.before else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitDecision:
    """Whether a request may begin. Made by a `RateLimiter`; read by `serve.gateway.middleware`."""

    ticket: str = ""
    """Given back by `release`."""
    refused: str = ""
    """The limit that is reached: `requests`, `tokens` or `concurrent`; empty for a request that may begin."""
    retry_after_s: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    """OpenAI's `x-ratelimit-*`; empty without limits a minute."""


class RateLimiter(Protocol):
    """Admits requests within limits. Requests with the same `who` share one allowance."""

    async def acquire(self, who: str, limits: LimitsConfig) -> RateLimitDecision: ...

    async def release(self, who: str, limits: LimitsConfig, ticket: str, tokens: int) -> None:
        """End the request of this ticket, and charge its tokens."""


class LocalRateLimiter:
    """`RateLimiter` of one process. A ticket that is not released expires after `ticket_s`."""

    def __init__(self, ticket_s: float) -> None:
        self._ticket_s = ticket_s
        self._storage = MemoryStorage()
        self._under_way: defaultdict[str, dict[str, float]] = defaultdict(dict)

    async def acquire(self, who: str, limits: LimitsConfig, ticket: str = "") -> RateLimitDecision:
        """As `RateLimiter.acquire`, under a `ticket` that the caller made, if any."""
        windows = {"requests": limits.requests_per_minute, "tokens": limits.tokens_per_minute}
        windows = {unit: limit for unit, limit in windows.items() if limit}
        ticket = ticket or uuid4().hex
        self._hold(who, ticket)
        refused, wait_s = "", float(BUSY_RETRY_S - 1)
        if limits.concurrent and len(self._under_way[who]) > limits.concurrent:
            refused = "concurrent"
        for unit, limit in windows.items():
            usage = await self._usage(unit, who)
            if usage.used >= limit:
                refused, wait_s = unit, max(wait_s, usage.seconds_until_under(limit))
        if refused:
            self._drop(who, ticket)
        elif limits.requests_per_minute:
            await self._charge("requests", who, 1)
        return RateLimitDecision(
            ticket="" if refused else ticket,
            refused=refused,
            # Rounded up to whole seconds, with a margin: a time of day is exact to a microsecond.
            retry_after_s=math.floor(wait_s + 1e-3) + 1 if refused else 0,
            headers={
                name: value
                for unit, limit in windows.items()
                for name, value in _headers(unit, limit, await self._usage(unit, who)).items()
            },
        )

    async def release(self, who: str, limits: LimitsConfig, ticket: str, tokens: int) -> None:
        self._drop(who, ticket)
        if limits.tokens_per_minute and tokens:
            await self._charge("tokens", who, tokens)

    def holds(self, who: str, ticket: str) -> bool:
        """Return whether this ticket is acquired and not released."""
        return ticket in self._under_way.get(who, {})

    def _hold(self, who: str, ticket: str) -> None:
        now = time.monotonic()
        held = {held: until for held, until in self._under_way[who].items() if until > now}
        self._under_way[who] = {**held, ticket: now + self._ticket_s}

    def _drop(self, who: str, ticket: str) -> None:
        held = self._under_way.get(who, {})
        held.pop(ticket, None)
        if not held:
            self._under_way.pop(who, None)

    async def _usage(self, unit: str, who: str) -> RateLimitUsage:
        before, before_s, now, now_s = await self._storage.get_sliding_window(f"{unit}/{who}", _MINUTE)
        return RateLimitUsage(before=before, before_s=before_s, now=now, now_s=now_s)

    async def _charge(self, unit: str, who: str, amount: int) -> None:
        # Not the library's own `hit`, which charges nothing where the limit would be exceeded.
        _, now = self._storage.sliding_window_keys(f"{unit}/{who}", _MINUTE, time.time())
        await self._storage.incr(now, 2 * _MINUTE, amount)


def _headers(unit: str, limit: int, usage: RateLimitUsage) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{unit}": str(limit),
        f"x-ratelimit-remaining-{unit}": str(max(0, limit - math.ceil(usage.used))),
        f"x-ratelimit-reset-{unit}": f"{usage.seconds_until_unused:.3f}s",
    }
