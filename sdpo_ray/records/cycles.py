"""How a cycle of the training loop starts and ends."""

from dataclasses import dataclass

from sdpo_ray.records.policies import Verdict


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
