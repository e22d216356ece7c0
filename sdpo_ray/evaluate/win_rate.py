"""Win rate of one policy's answers over another's, by both rules for ties, since the paper reports only one."""

from collections import Counter
from typing import Literal

from sdpo_ray.errors import DataError
from sdpo_ray.evaluate.client import Answers
from sdpo_ray.evaluate.judge import Judge, PairResult, compare
from sdpo_ray.evaluate.probe import score
from sdpo_ray.evaluate.statistics import proportion, ties_half
from sdpo_ray.records import Score, ScoreSpec

Opponent = Literal["vs_base", "vs_champion"]


def win_rate_scores(opponent: Opponent) -> tuple[ScoreSpec, ...]:
    """Scores of `win_rate`. Without one decided pair `ties_dropped` has nothing to estimate: n = 0."""
    name = f"win_rate.{opponent}"
    return (
        ScoreSpec(name=f"{name}.ties_dropped", may_be_empty=True),
        ScoreSpec(name=f"{name}.ties_half"),
        ScoreSpec(name=f"{name}.coverage"),
    )


def win_rate(
    opponent: Opponent, ours: Answers, theirs: Answers, *, judge: Judge | None, confidence: float
) -> tuple[Score, ...]:
    """Scores `win_rate.<opponent>.ties_dropped`, `.ties_half` and `.coverage` (share of pairs without a tie).

    Answers are paired by position. If all pairs tie, `ties_dropped` has n = 0 and the interval [0, 1]. Raises DataError
    without a judge.
    """
    if judge is None:
        raise DataError("a win rate needs a judge, and this suite has none")
    results = Counter(compare(judge, a.prompt, a.text, b.text) for a, b in zip(ours, theirs, strict=True))
    wins, losses, n = results[PairResult.WIN], results[PairResult.LOSS], len(ours)
    name = f"win_rate.{opponent}"
    return (
        score(f"{name}.ties_dropped", proportion(wins, wins + losses, confidence)),
        score(f"{name}.ties_half", ties_half(wins, losses, n, confidence)),
        score(f"{name}.coverage", proportion(wins + losses, n, confidence)),
    )
