"""Intervals in closed form: the same answers give the same report, to the last digit.

No normal interval around p itself and no bootstrap: both shrink to a point where every answer is right, or
every pair a tie, and that is where a gate needs them most.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

from sdpo_ray.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value and its two-sided interval. Made here; read by the probes."""

    n: int
    value: float
    low: float
    high: float


def proportion(successes: int, n: int, confidence: float) -> Estimate:
    """k / n with Wilson's score interval (1927).

    Without a single trial it is Wilson's limit for n -> 0: 0.5, anywhere in [0, 1].
    """
    if not 0 <= successes <= n:
        raise DataError(f"{successes} successes in {n} trials")
    if n == 0:
        return Estimate(n=0, value=0.5, low=0.0, high=1.0)
    z2 = _quantile(confidence) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return _around(share, centre, half, n=n, least=0.0, most=1.0)


def paired_difference(gained: int, lost: int, n: int, confidence: float) -> Estimate:
    """(gained - lost) / n over n pairs: difference of two proportions on the same items.

    Bonett and Price's adjusted Wald interval (J. Educ. Behav. Stat. 37, 2012): one imagined pair more on
    each side. It holds its level for small n and, unlike McNemar's, keeps a width where nothing differs.
    """
    if gained < 0 or lost < 0 or gained + lost > n:
        raise DataError(f"{gained} gained and {lost} lost in {n} pairs")
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = _quantile(confidence) * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return _around((gained - lost) / n if n else 0.0, up - down, half, n=n, least=-1.0, most=1.0)


def ties_half(wins: int, losses: int, n: int, confidence: float) -> Estimate:
    """Win rate over n prompts in which a tie counts half.

    It is (1 + d) / 2 of the paired difference d of wins and losses, and so is its interval: ties, which
    are most of what two close policies produce, narrow it as they should.
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
    """sum(totals) / sum(sizes) of a few clusters whose members are alike, such as the tokens of a conversation.

    Clusters vary, not their members: residuals of the ratio by cluster (Cochran, Sampling Techniques (1977), 6.4) and
    Student's t with one degree of freedom less than there are clusters. `n` is their number. Raises DataError for fewer
    than two, and for empty ones.
    """
    n = len(totals)
    if n < 2 or min(sizes) < 1:
        raise DataError(f"no mean over clusters: {n} of them, the smallest has {min(sizes, default=0)} members")
    mean = math.fsum(totals) / sum(sizes)
    residuals = [total - mean * size for total, size in zip(totals, sizes, strict=True)]
    deviation = math.sqrt(math.fsum(r * r for r in residuals) / (n - 1))
    half = _student(confidence, n - 1) * deviation / (math.sqrt(n) * fmean(sizes))
    return _around(mean, mean, half, n=n, least=-math.inf, most=math.inf)


def _student(confidence: float, degrees: int) -> float:
    """The two-sided quantile of Student's t, by bisection of its distribution function."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return (low + high) / 2


def _within(t: float, degrees: int) -> float:
    """P(|T| < t) for Student's t, a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    term = cosine if degrees % 2 else 1.0
    total = 0.0
    for each in range(1 if degrees % 2 else 0, degrees - 1, 2):
        total += term
        term *= cosine * cosine * (each + 1) / (each + 2)
    return 2 / math.pi * (angle + sine * total) if degrees % 2 else sine * total


def _quantile(confidence: float) -> float:
    """The two-sided normal quantile: 1.96 at 0.95."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _around(value: float, centre: float, half: float, *, n: int, least: float, most: float) -> Estimate:
    """The interval within the possible values; rounding may not push the estimate out of its own interval."""
    low, high = max(least, min(value, centre - half)), min(most, max(value, centre + half))
    return Estimate(n=n, value=value, low=low, high=high)
