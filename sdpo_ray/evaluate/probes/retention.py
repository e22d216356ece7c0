"""Does the policy still know what the base knew?"""

from collections.abc import Callable
from typing import TypeAlias

from sdpo_ray.evaluate.client import Answers
from sdpo_ray.evaluate.probes import score
from sdpo_ray.evaluate.statistics import paired_difference, proportion
from sdpo_ray.records import Score

IsRight: TypeAlias = Callable[[str, str], bool]
"""is_right(prompt, text): whether the text answers the prompt, whatever its style."""


def retention(ours: Answers, base: Answers, *, is_right: IsRight, confidence: float) -> tuple[Score, ...]:
    """Scores `retention`, the share of right answers, and `retention.drop_vs_base`: positive where lost.

    Answers are paired by position, so that what both policies get wrong does not blur the drop.
    """
    now = [is_right(answer.prompt, answer.text) for answer in ours]
    before = [is_right(answer.prompt, answer.text) for answer in base]
    lost = sum(was and not is_ for is_, was in zip(now, before, strict=True))
    gained = sum(is_ and not was for is_, was in zip(now, before, strict=True))
    return (
        score("retention", proportion(sum(now), len(now), confidence)),
        score("retention.drop_vs_base", paired_difference(lost, gained, len(now), confidence)),
    )
