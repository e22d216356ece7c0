"""Retention: the share of questions that a policy still answers rightly, and what it lost against the base."""

from sdpo_ray.evaluate.client import Answers
from sdpo_ray.evaluate.probe import Probe, ProbeInput, score
from sdpo_ray.evaluate.questions import IsRight
from sdpo_ray.evaluate.statistics import paired_difference, proportion
from sdpo_ray.records import Score, ScoreSpec


def retention(ours: Answers, base: Answers, *, is_right: IsRight, confidence: float) -> tuple[Score, ...]:
    """Scores `retention`, the share of right answers, and `retention.drop_vs_base`: positive where lost.

    Answers are paired by position, so that questions which both policies get wrong do not widen the drop's interval.
    """
    now = [is_right(answer.prompt, answer.text) for answer in ours]
    before = [is_right(answer.prompt, answer.text) for answer in base]
    lost = sum(was and not is_ for is_, was in zip(now, before, strict=True))
    gained = sum(is_ and not was for is_, was in zip(now, before, strict=True))
    return (
        score("retention", proportion(sum(now), len(now), confidence)),
        score("retention.drop_vs_base", paired_difference(lost, gained, len(now), confidence)),
    )


def measure(given: ProbeInput) -> tuple[Score, ...]:
    """Retention of the candidate against the base."""
    return retention(given.candidate, given.base, is_right=given.is_right, confidence=given.confidence)


PROBE = Probe(
    name="retention",
    scores=(
        ScoreSpec(name="retention", direction="min", setting="min_retention"),
        ScoreSpec(name="retention.drop_vs_base", direction="max", setting="max_retention_drop"),
    ),
    run=measure,
)
