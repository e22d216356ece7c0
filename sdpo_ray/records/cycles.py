"""How a cycle of the training loop starts and ends."""

from dataclasses import dataclass

from sdpo_ray.records.policies import Verdict
from sdpo_ray.records.turns import BASE_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleStart:
    """What a cycle started from; fixed once, so that a resumed cycle does the same work."""

    cycle: int
    policy_version: int
    """The version its candidate will have."""
    parent_version: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleOutcome:
    """How a cycle ended."""

    cycle: int
    policy_version: int
    verdict: Verdict
    reasons: tuple[str, ...]
    champion_version: int
    """What is served after it."""


def version_of_cycle(cycle: int) -> int:
    """Policy version that cycle number `cycle` proposes; cycles count from 1."""
    return BASE_VERSION + cycle


def cycle_of_version(policy_version: int) -> int:
    """Number of the cycle that proposed a policy version; 0 for the base, which none did."""
    return policy_version - BASE_VERSION
