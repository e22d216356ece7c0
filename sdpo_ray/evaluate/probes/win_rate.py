"""Which policy's answers does the user like better? Both tie rules, because the paper reports only one."""

from collections import Counter
from typing import Literal

from sdpo_ray.evaluate.client import Answers
from sdpo_ray.evaluate.judge import Judge, PairResult, compare
from sdpo_ray.evaluate.probes import score
from sdpo_ray.evaluate.statistics import proportion, ties_half
from sdpo_ray.records import Score

Opponent = Literal["vs_base", "vs_champion"]


def win_rate(
    opponent: Opponent, ours: Answers, theirs: Answers, *, judge: Judge, confidence: float
) -> tuple[Score, ...]:
    """Scores `win_rate.<opponent>.ties_dropped`, `.ties_half` and `.coverage` (share of pairs without a tie).

    Answers are paired by position. All pairs tied leaves `ties_dropped` with n = 0 and the interval [0, 1].
    """
    results = Counter(compare(judge, a.prompt, a.text, b.text) for a, b in zip(ours, theirs, strict=True))
    wins, losses, n = results[PairResult.WIN], results[PairResult.LOSS], len(ours)
    name = f"win_rate.{opponent}"
    return (
        score(f"{name}.ties_dropped", proportion(wins, wins + losses, confidence)),
        score(f"{name}.ties_half", ties_half(wins, losses, n, confidence)),
        score(f"{name}.coverage", proportion(wins + losses, n, confidence)),
    )
