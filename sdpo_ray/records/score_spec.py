"""What the gate demands of one score."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSpec:
    """Declaration of one score. Made by the probe that measures it; obeyed by `promote.gate`.

    A score with a `direction` is a veto: its value may not be under ("min") or over ("max") its bound, which is the key
    `setting` of `[promote]`, or the number `bound`. `[promote.bounds]` of a run file replaces either. Raises ValueError
    for a direction without a bound, a bound without a direction, and for both a number and a key.
    """

    name: str
    required: bool = True
    """A report without this score is rejected."""
    direction: Literal["min", "max"] | None = None
    bound: float | None = None
    setting: str = ""
    may_be_empty: bool = False
    """The score may rest on no item (n = 0), and is then no evidence."""

    def __post_init__(self) -> None:
        given = (self.bound is not None) + bool(self.setting)
        if given != (self.direction is not None):
            raise ValueError(f"{self.name}: a direction needs either a bound or a setting, and nothing else does")
