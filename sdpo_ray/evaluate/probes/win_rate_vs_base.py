"""Win rate over the base policy: how much the run has gained altogether. Reported, not bounded."""

from sdpo_ray.evaluate.probe import Probe, ProbeInput, Suite
from sdpo_ray.evaluate.win_rate import win_rate, win_rate_scores
from sdpo_ray.records import Score


def measure(given: ProbeInput) -> tuple[Score, ...]:
    """Win rate of the candidate over the base."""
    return win_rate("vs_base", given.candidate, given.base, judge=given.judge, confidence=given.confidence)


PROBE = Probe(name="win_rate.vs_base", scores=win_rate_scores("vs_base"), run=measure, suites=frozenset({Suite.SHARED}))
