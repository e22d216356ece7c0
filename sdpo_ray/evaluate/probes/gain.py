"""Gain of a personal policy: whether it does what its user asked for, on that user's held-out conversations."""

from collections import defaultdict
from collections.abc import Sequence

from sdpo_ray.evaluate.probe import Probe, ProbeInput, Suite, score
from sdpo_ray.evaluate.statistics import mean_over_clusters
from sdpo_ray.records import Gain, Score, ScoreSpec


def gain(gains: Sequence[Gain], *, confidence: float) -> tuple[Score, ...]:
    """Score `gain`: nats a token. Conversations are the clusters, and `n` counts them.

    Raises DataError for fewer than two conversations.
    """
    nats, tokens = defaultdict[str, float](float), defaultdict[str, int](int)
    for each in gains:
        nats[each.conversation] += each.nats
        tokens[each.conversation] += each.num_tokens
    return (score("gain", mean_over_clusters(list(nats.values()), list(tokens.values()), confidence)),)


def measure(given: ProbeInput) -> tuple[Score, ...]:
    """Score `gain` of the candidate."""
    return gain(given.gains, confidence=given.confidence)


PROBE = Probe(name="gain", scores=(ScoreSpec(name="gain"),), run=measure, suites=frozenset({Suite.PERSONAL}))
