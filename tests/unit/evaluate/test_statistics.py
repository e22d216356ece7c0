from itertools import product
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_ray.errors import DataError
from sdpo_ray.evaluate.statistics import Estimate, paired_difference, proportion, ratio_of_means, ties_half

CONFIDENCES = st.sampled_from([0.8, 0.9, 0.95, 0.99])


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_a_proportion_has_the_interval_that_newcombe_published_for_wilson(
    successes: int, n: int, low: float, high: float
):
    estimate = proportion(successes, n, 0.95)
    assert estimate.value == successes / n
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_a_proportion_of_nothing_may_be_anything():
    assert proportion(0, 0, 0.95) == Estimate(n=0, value=0.5, low=0.0, high=1.0)


def test_a_paired_difference_is_the_adjusted_wald_interval_computed_by_hand():
    # 31/102 and 11/102: centre 0.196078, variance (0.411765 - 0.038447) / 102, times 1.959964.
    estimate = paired_difference(30, 10, 100, 0.95)
    assert estimate.value == pytest.approx(0.2)
    assert estimate.low == pytest.approx(0.077505, abs=2e-6)
    assert estimate.high == pytest.approx(0.314652, abs=2e-6)


def test_pairs_without_a_difference_still_have_an_interval():
    estimate = paired_difference(0, 0, 192, 0.95)
    assert estimate.value == 0
    assert estimate.high == -estimate.low == pytest.approx(1.959964 * (2 / 194 / 194) ** 0.5, abs=1e-6)


def test_a_tie_counts_half_and_both_win_rates_agree_without_ties():
    assert ties_half(1, 0, 4, 0.95).value == 0.625
    assert ties_half(30, 10, 100, 0.95).low == pytest.approx((1 + 0.077505) / 2, abs=1e-6)
    assert ties_half(70, 30, 100, 0.95).value == pytest.approx(proportion(70, 100, 0.95).value)


@pytest.mark.parametrize(("p_gain", "p_loss"), [(0.02, 0.02), (0.3, 0.1), (0.5, 0.5), (0.85, 0.05), (0.05, 0.25)])
def test_the_paired_interval_holds_its_level_for_thirty_pairs(p_gain: float, p_loss: float):
    """Exact coverage: the probability of every outcome whose interval holds the true difference."""
    n, covered = 30, 0.0
    for gained, lost in product(range(n + 1), repeat=2):
        same = n - gained - lost
        if same < 0:
            continue
        estimate = paired_difference(gained, lost, n, 0.95)
        if estimate.low <= p_gain - p_loss <= estimate.high:
            p_same = max(0.0, 1 - p_gain - p_loss)
            covered += comb(n, gained) * comb(n - gained, lost) * p_gain**gained * p_loss**lost * p_same**same
    assert covered > 0.94


def test_a_ratio_of_means_is_computed_by_hand():
    # Ratio 0.75, residuals -1 and 1, deviation sqrt(2), mean 4: half width 1.959964 / 4.
    estimate = ratio_of_means([2, 4], [4, 4], 0.95)
    assert estimate.value == 0.75
    assert (estimate.low, estimate.high) == (pytest.approx(0.260009, abs=1e-6), pytest.approx(1.239991, abs=1e-6))


def test_answers_twice_as_long_everywhere_are_exactly_twice_as_long():
    assert ratio_of_means([2, 8, 20], [1, 4, 10], 0.95) == Estimate(n=3, value=2.0, low=2.0, high=2.0)


@pytest.mark.parametrize(("ours", "theirs"), [([1.0, 2.0], [0.0, 0.0]), ([1.0], [1.0]), ([], [])])
def test_there_is_no_ratio_to_nothing(ours: list[float], theirs: list[float]):
    with pytest.raises(DataError, match="no ratio of means"):
        ratio_of_means(ours, theirs, 0.95)


@pytest.mark.parametrize(("successes", "n"), [(-1, 4), (5, 4)])
def test_impossible_counts_are_refused(successes: int, n: int):
    with pytest.raises(DataError, match="successes in 4 trials"):
        proportion(successes, n, 0.95)
    with pytest.raises(DataError, match="gained"):
        paired_difference(successes, 0, n, 0.95)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300), CONFIDENCES)
def test_an_estimate_lies_in_its_interval_and_the_interval_in_the_possible(
    wins: int, losses: int, ties: int, confidence: float
):
    n = wins + losses + ties
    for estimate, least in (
        (proportion(wins, n, confidence), 0.0),
        (ties_half(wins, losses, n, confidence), 0.0),
        (paired_difference(wins, losses, n, confidence), -1.0),
    ):
        assert least <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.n == n


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_exchanging_the_sides_mirrors_the_win_rate(wins: int, losses: int, ties: int):
    n = wins + losses + ties
    ours, theirs = ties_half(wins, losses, n, 0.95), ties_half(losses, wins, n, 0.95)
    assert ours.value == pytest.approx(1 - theirs.value)
    assert (ours.low, ours.high) == (pytest.approx(1 - theirs.high), pytest.approx(1 - theirs.low))
