"""A pairwise judge, asked in both orders: what it says about a pair may not depend on who is shown first."""

from collections.abc import Callable
from enum import Enum
from typing import Literal, TypeAlias

from sdpo_ray.errors import DataError

Judge: TypeAlias = Callable[[str, str, str], Literal["A", "B", "C"]]
"""judge(prompt, a, b): which answer is better, "C" for neither."""


class PairResult(Enum):
    """How one of our answers did against one of theirs."""

    WIN = "win"
    LOSS = "loss"
    TIE = "tie"


def compare(judge: Judge, prompt: str, ours: str, theirs: str) -> PairResult:
    """Ask twice, with the answers exchanged; two orders that disagree are a tie.

    Raises DataError when the judge says anything but A, B or C.
    """
    verdicts = (judge(prompt, ours, theirs), judge(prompt, theirs, ours))
    for verdict in verdicts:
        if verdict not in ("A", "B", "C"):
            raise DataError(f"the judge said {verdict!r} about {prompt!r}; it may say A, B or C")
    if verdicts == ("A", "B"):
        return PairResult.WIN
    if verdicts == ("B", "A"):
        return PairResult.LOSS
    return PairResult.TIE
