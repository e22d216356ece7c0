"""Win rate over the champion; `promote.gate` promotes by `win_rate.vs_champion.ties_half`."""

from sdpo_ray.evaluate.probe import Probe, ProbeInput, Suite
from sdpo_ray.evaluate.win_rate import win_rate, win_rate_scores
from sdpo_ray.records import Score


def measure(given: ProbeInput) -> tuple[Score, ...]:
    """Win rate of the candidate over the champion."""
    return win_rate("vs_champion", given.candidate, given.champion, judge=given.judge, confidence=given.confidence)


PROBE = Probe(
    name="win_rate.vs_champion", scores=win_rate_scores("vs_champion"), run=measure, suites=frozenset({Suite.SHARED})
)
