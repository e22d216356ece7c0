"""Sequential test of whether one rate is higher than another, valid at every time it is looked at.

Two streams of binary outcomes. A block is the next outcome y of the candidate with the next k outcomes x of the
champion. With p an estimate of the champion's rate, q > p of the candidate's, and m = (k p + q) / (k + 1), a block
multiplies the evidence by

    S = q(y) prod_i p(x_i) / (m(y) prod_i m(x_i)),        where r(1) = r and r(0) = 1 - r.

Where the candidate's true rate is no higher than the champion's, E[S] <= 1 for every p < q (Turner, Ly and Grunwald
2024, "Generic E-variables for exact sequential k-sample tests that allow for optional stopping", J. Stat. Plan.
Inference 230; at equal rates by their theorem 1, below by monotonicity). p and q may depend on earlier blocks, and the
mean of several such products is again one. So by Ville's inequality (1939) the probability that the evidence ever
reaches 1 / alpha is at most alpha, however often and whenever it is looked at.

The outcomes of a block are of about the same time, so a drift of both rates does no harm. Outcomes must be independent
of each other: add one for each conversation, not one for each turn.
"""

import math
from collections import deque
from collections.abc import Hashable

ODDS = (1.5, 3.0, 9.0, 81.0)
"""Alternatives: the candidate's odds as a multiple of the champion's. The evidence is the mean over them."""
PRIOR = 0.18
"""Pseudocount of each outcome before the first block, as Turner, Ly and Grunwald choose for an unknown rate."""


class HigherRate:
    """Evidence that the candidate's rate is higher than the champion's.

    Outcomes may be of several kinds with different rates; only outcomes of one kind are compared. `block` is k.
    """

    def __init__(self, *, block: int) -> None:
        self._block = block
        self._log_evidence = [0.0] * len(ODDS)
        self._kinds: dict[Hashable, _Kind] = {}

    @property
    def evidence(self) -> float:
        """Starts at 1; at 1 / alpha or more, the rate is higher."""
        most = max(self._log_evidence)
        # Capped: exp overflows at 710.
        scale = math.exp(min(most, 500.0))
        return scale * math.fsum(math.exp(each - most) for each in self._log_evidence) / len(ODDS)

    def add(self, outcome: bool, *, candidate: bool, kind: Hashable = None) -> None:
        """Add the next outcome of one of the two, in the order of time."""
        of_kind = self._kinds.setdefault(kind, _Kind())
        (of_kind.candidates if candidate else of_kind.champions).append(outcome)
        while of_kind.candidates and len(of_kind.champions) >= self._block:
            champions = [of_kind.champions.popleft() for _ in range(self._block)]
            rate = of_kind.rate
            factors = (log_factor(rate, odds, champions, of_kind.candidates[0]) for odds in ODDS)
            self._log_evidence = [sum(pair) for pair in zip(self._log_evidence, factors, strict=True)]
            of_kind.learn([*champions, of_kind.candidates.popleft()])


class _Kind:
    def __init__(self) -> None:
        self.champions: deque[bool] = deque()
        self.candidates: deque[bool] = deque()
        self._yes = PRIOR
        self._n = 2 * PRIOR

    @property
    def rate(self) -> float:
        """Common rate of both in the blocks so far."""
        return self._yes / self._n

    def learn(self, outcomes: list[bool]) -> None:
        self._yes += sum(outcomes)
        self._n += len(outcomes)


def log_factor(rate: float, odds: float, champions: list[bool], candidate: bool) -> float:
    """log S of one block, with p = `rate` and q at `odds` times the odds of p."""
    p = rate
    q = odds * p / (1 - p + odds * p)
    m = (len(champions) * p + q) / (len(champions) + 1)
    yes = sum(champions)
    return (
        yes * math.log(p / m)
        + (len(champions) - yes) * math.log((1 - p) / (1 - m))
        + math.log(q / m if candidate else (1 - q) / (1 - m))
    )
