"""A pairwise judge, called in both orders, so that a preference for the first answer decides nothing."""

from collections.abc import Callable
from enum import Enum
from typing import Literal, TypeAlias

from sdpo_ray.config import Run
from sdpo_ray.errors import ConfigError, DataError
from sdpo_ray.evaluate.import_path import load

Judge: TypeAlias = Callable[[str, str, str], Literal["A", "B", "C"]]
"""judge(prompt, a, b): the better answer, "C" for neither."""


class PairResult(Enum):
    """Result of one of our answers against one of theirs."""

    WIN = "win"
    LOSS = "loss"
    TIE = "tie"


def load_judge(run: Run) -> Judge:
    """Judge of a run: what the function `evaluate.judge` returns for it. Raises ConfigError."""
    judge: Judge = load("evaluate.judge", run.evaluate.judge)(run)
    if not callable(judge):
        raise ConfigError(f"evaluate.judge: {run.evaluate.judge} returned {type(judge).__name__}, not a function")
    return judge


def compare(judge: Judge, prompt: str, ours: str, theirs: str) -> PairResult:
    """Result over both orders; two orders that disagree are a tie.

    Raises DataError when the judge returns anything but A, B or C.
    """
    verdicts = (judge(prompt, ours, theirs), judge(prompt, theirs, ours))
    for verdict in verdicts:
        if verdict not in ("A", "B", "C"):
            raise DataError(f"the judge returned {verdict!r} for {prompt!r}; it may return A, B or C")
    if verdicts == ("A", "B"):
        return PairResult.WIN
    if verdicts == ("B", "A"):
        return PairResult.LOSS
    return PairResult.TIE
