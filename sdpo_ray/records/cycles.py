"""Records of the start and the end of a training cycle."""

from dataclasses import dataclass

from sdpo_ray.records.policies import Verdict
from sdpo_ray.records.turns import BASE_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleStart:
    """Inputs of a cycle, written once, so that a resumed cycle does the same work.

    Made and read by `pipeline.cycle`.
    """

    cycle: int
    policy_version: int
    """Version of its candidate."""
    parent_version: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleOutcome:
    """Outcome of a cycle. Made by `pipeline.cycle`; read by commands and `demo`."""

    cycle: int
    policy_version: int
    verdict: Verdict
    reasons: tuple[str, ...]
    champion_version: int
    """Version that is served after the cycle."""


def version_of_cycle(cycle: int) -> int:
    """Policy version that cycle number `cycle` proposes; cycles count from 1."""
    return BASE_VERSION + cycle


def cycle_of_version(policy_version: int) -> int:
    """Number of the cycle that proposed a policy version; 0 for the base, which none did."""
    return policy_version - BASE_VERSION
