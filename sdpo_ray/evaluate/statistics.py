"""Estimates with two-sided intervals, without random numbers: the same answers give the same report.

Neither the normal interval around a share nor the bootstrap is used: both have width 0 where every answer is right or
every pair ties, which is where the gate most needs an interval.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from scipy.stats import binomtest, t

from sdpo_ray.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value and its two-sided interval. Made here; read by the probes. `n` is the number of items."""

    n: int
    value: float
    low: float
    high: float


def proportion(successes: int, n: int, confidence: float) -> Estimate:
    """k / n with Wilson's score interval (1927).

    For n = 0 it is the limit of Wilson's interval: 0.5 in [0, 1]. Raises DataError for more successes than trials.
    """
    if not 0 <= successes <= n:
        raise DataError(f"{successes} successes in {n} trials")
    if n == 0:
        return Estimate(n=0, value=0.5, low=0.0, high=1.0)
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return _within(successes / n, interval.low, interval.high, n=n, least=0.0, most=1.0)


def paired_difference(gained: int, lost: int, n: int, confidence: float) -> Estimate:
    """(gained - lost) / n over n pairs: difference of two proportions on the same items.

    Bonett and Price's adjusted Wald interval (J. Educ. Behav. Stat. 37, 2012): one pair is added on each side. It holds
    its level for small n and, unlike McNemar's, has a width where no pair differs. Raises DataError for impossible
    counts.
    """
    if gained < 0 or lost < 0 or gained + lost > n:
        raise DataError(f"{gained} gained and {lost} lost in {n} pairs")
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = _quantile(confidence) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return _around((gained - lost) / n if n else 0.0, up - down, half, n=n, least=-1.0, most=1.0)


def ties_half(wins: int, losses: int, n: int, confidence: float) -> Estimate:
    """Win rate over n prompts in which a tie counts half.

    It is (1 + d) / 2 of the paired difference d of wins and losses, and so is its interval. Ties, the most frequent
    result between two close policies, narrow it.
    """
    difference = paired_difference(wins, losses, n, confidence)
    value, low, high = ((1 + d) / 2 for d in (difference.value, difference.low, difference.high))
    return Estimate(n=n, value=value, low=low, high=high)


def ratio_of_means(ours: Sequence[float], theirs: Sequence[float], confidence: float) -> Estimate:
    """mean(ours) / mean(theirs) of paired measurements, normal interval from the residuals ours - r theirs.

    Cochran, Sampling Techniques (1977), 6.4. Raises DataError where theirs are all zero or n < 2.
    """
    n = len(ours)
    if n < 2 or sum(theirs) <= 0:
        raise DataError(f"no ratio of means: {n} pairs, the divisors sum to {sum(theirs)}")
    scale = fmean(theirs)
    ratio = fmean(ours) / scale
    residuals = [x - ratio * y for x, y in zip(ours, theirs, strict=True)]
    deviation = math.sqrt(sum(r * r for r in residuals) / (n - 1))
    half = _quantile(confidence) * deviation / (math.sqrt(n) * scale)
    return _around(ratio, ratio, half, n=n, least=0.0, most=math.inf)


def mean_over_clusters(totals: Sequence[float], sizes: Sequence[int], confidence: float) -> Estimate:
    """sum(totals) / sum(sizes) over clusters of dependent members, such as the tokens of a conversation.

    The interval is from the residuals of the ratio by cluster (Cochran, Sampling Techniques (1977), 6.4) and Student's
    t with one degree of freedom less than there are clusters. `n` is the number of clusters. Raises DataError for fewer
    than two clusters, and for empty ones.
    """
    n = len(totals)
    if n < 2 or min(sizes) < 1:
        raise DataError(f"no mean over clusters: {n} of them, the smallest has {min(sizes, default=0)} members")
    mean = math.fsum(totals) / sum(sizes)
    residuals = [total - mean * size for total, size in zip(totals, sizes, strict=True)]
    deviation = math.sqrt(math.fsum(r * r for r in residuals) / (n - 1))
    half = t.ppf((1 + confidence) / 2, n - 1) * deviation / (math.sqrt(n) * fmean(sizes))
    return _around(mean, mean, half, n=n, least=-math.inf, most=math.inf)


def _quantile(confidence: float) -> float:
    """The two-sided normal quantile: 1.96 at 0.95."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _around(value: float, centre: float, half: float, *, n: int, least: float, most: float) -> Estimate:
    return _within(value, centre - half, centre + half, n=n, least=least, most=most)


def _within(value: float, low: float, high: float, *, n: int, least: float, most: float) -> Estimate:
    """Interval within the possible values, widened to hold the estimate where rounding left it outside."""
    return Estimate(n=n, value=value, low=float(max(least, min(value, low))), high=float(min(most, max(value, high))))
