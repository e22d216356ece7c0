"""Limits of API keys: requests and tokens a minute, requests at once. Times are seconds of a clock that tests move."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from sdpo_ray.config import LimitsConfig, ServeConfig
from serve.gateway.observability import Observability
from serve.gateway.rate_limit import LocalRateLimiter, RateLimitDecision, RateLimitUsage
from serve.gateway.shared_rate_limit import RateLimiterActor, SharedRateLimiter

_Result = TypeVar("_Result")
START = 1_800_000_000.0
"""The first second of a minute."""


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


def run(work: Coroutine[Any, Any, _Result]) -> _Result:
    with asyncio.Runner() as runner:
        return runner.run(work)


async def ask(
    limiter: LocalRateLimiter, limits: LimitsConfig, who: str = "k1", *, tokens: int = 0
) -> RateLimitDecision:
    """One request that is over at once."""
    decision = await limiter.acquire(who, limits)
    if not decision.refused:
        await limiter.release(who, limits, decision.ticket, tokens)
    return decision


def test_a_key_has_so_many_requests_a_minute_and_another_key_its_own(clock: Clock) -> None:
    async def scenario() -> list[str]:
        limiter, limits = LocalRateLimiter(60), LimitsConfig(requests_per_minute=2)
        said = [(await ask(limiter, limits)).refused for _ in range(3)]
        said.append((await ask(limiter, limits, "k2")).refused)
        # A minute later the two of before count whole, for a moment; half a minute later they count one.
        clock.now += 60
        said.append((await ask(limiter, limits)).refused)
        clock.now += 30
        said.append((await ask(limiter, limits)).refused)
        return said

    assert run(scenario()) == ["", "", "requests", "", "requests", ""]


def test_openai_s_headers_tell_what_is_left(clock: Clock) -> None:
    async def scenario() -> RateLimitDecision:
        limiter, limits = LocalRateLimiter(60), LimitsConfig(requests_per_minute=10, tokens_per_minute=1000)
        await ask(limiter, limits, tokens=300)
        clock.now += 15
        return await ask(limiter, limits)

    assert run(scenario()).headers == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "8",
        # What is used in this minute counts until the end of the next.
        "x-ratelimit-reset-requests": "105.000s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "700",
        "x-ratelimit-reset-tokens": "105.000s",
    }


def test_tokens_are_charged_when_they_are_known_and_a_debt_is_worked_off(clock: Clock) -> None:
    async def scenario() -> list[tuple[str, int]]:
        limiter, limits = LocalRateLimiter(60), LimitsConfig(tokens_per_minute=100)
        said = [await ask(limiter, limits, tokens=150), await ask(limiter, limits)]
        # 150 slide out of the minute after this one: at its 20th second 100 are left, which is still all of the limit.
        clock.now += 80
        said.append(await ask(limiter, limits))
        clock.now += 1
        said.append(await ask(limiter, limits))
        return [(decision.refused, decision.retry_after_s) for decision in said]

    assert run(scenario()) == [("", 0), ("tokens", 81), ("tokens", 1), ("", 0)]


def test_requests_at_once_are_counted_until_they_are_over_or_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monotonic = Clock()
    monkeypatch.setattr(time, "monotonic", monotonic)

    async def scenario() -> list[str]:
        limiter, limits = LocalRateLimiter(60), LimitsConfig(concurrent=2)
        first = await limiter.acquire("k", limits)
        await limiter.acquire("k", limits)
        refused = await limiter.acquire("k", limits)
        assert refused.retry_after_s == 1
        await limiter.release("k", limits, first.ticket, 0)
        again = await limiter.acquire("k", limits)
        full = await limiter.acquire("k", limits)
        # A replica that died never says that its requests are over.
        monotonic.now += 61
        lost = await limiter.acquire("k", limits)
        return [refused.refused, again.refused, full.refused, lost.refused]

    assert run(scenario()) == ["concurrent", "", "concurrent", ""]


def test_a_refused_request_costs_nothing(clock: Clock) -> None:
    async def scenario() -> str:
        limiter, limits = LocalRateLimiter(60), LimitsConfig(requests_per_minute=5, concurrent=1)
        held = await limiter.acquire("k", limits)
        for _ in range(20):
            assert (await limiter.acquire("k", limits)).refused == "concurrent"
        await limiter.release("k", limits, held.ticket, 0)
        return (await ask(limiter, limits, "k")).headers["x-ratelimit-remaining-requests"]

    assert run(scenario()) == "3"


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 50), st.integers(1, 300)), max_size=8),
    st.integers(1, 200),
    st.integers(0, 200),
)
def test_who_comes_back_after_retry_after_is_let_in_and_a_second_earlier_is_not(
    came: list[tuple[float, int]], tokens_per_minute: int, requests_per_minute: int
) -> None:
    limits = LimitsConfig(tokens_per_minute=tokens_per_minute, requests_per_minute=requests_per_minute)
    clock = Clock()

    async def scenario() -> tuple[int, str, str]:
        limiter = LocalRateLimiter(60)
        for wait_s, tokens in came:
            clock.now += wait_s
            await ask(limiter, limits, tokens=tokens)
        decision = await ask(limiter, limits)
        assume(decision.refused)
        clock.now += max(0.0, decision.retry_after_s - 1.003)
        early = await limiter.acquire("k1", limits)
        clock.now += min(decision.retry_after_s, 1.003)
        return decision.retry_after_s, early.refused, (await limiter.acquire("k1", limits)).refused

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", clock)
        retry_after_s, early, late = run(scenario())
    assert 1 <= retry_after_s <= 121
    assert early
    assert late == ""


@settings(deadline=None)
@given(st.integers(0, 500), st.floats(0, 60), st.integers(0, 500), st.integers(1, 400))
def test_seconds_until_under_is_when_the_windows_have_slid_below_the_limit(
    before: int, before_s: float, now: int, limit: int
) -> None:
    usage = RateLimitUsage(before=before, before_s=before_s, now=now, now_s=before_s + 60)
    wait_s = usage.seconds_until_under(limit)

    def used_after(seconds: float) -> float:
        """By the definition of the windows, step by step."""
        if seconds <= before_s:
            return before * (before_s - seconds) / 60 + now
        return now * max(0.0, before_s + 60 - seconds) / 60

    assert used_after(wait_s + 1e-3) < limit + 1e-6
    if wait_s > 1e-3:
        assert used_after(wait_s - 1e-3) >= limit - 1e-6


def test_a_ticket_that_comes_back_before_it_was_asked_for_is_never_out() -> None:
    async def scenario() -> list[str]:
        shared, limits = RateLimiterActor(60), LimitsConfig(concurrent=1)
        await shared.release("k", limits, "late", 0)
        given_up = await shared.acquire("k", limits, "late")
        assert given_up.ticket == ""
        return [(await shared.acquire("k", limits, ticket)).refused for ticket in ("first", "second")]

    assert run(scenario()) == ["", "concurrent"]


def test_a_replica_that_shares_limits_counts_together_with_the_others() -> None:
    observability = Observability(ServeConfig(), application="shop", registry=CollectorRegistry())
    assert isinstance(observability.rate_limiter, LocalRateLimiter)
    observability.share_limits()
    assert isinstance(observability.rate_limiter, SharedRateLimiter)
    assert observability.counters["sdpo_limits"] is observability.rate_limiter.counters
