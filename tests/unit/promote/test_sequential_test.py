"""The test of two rates that may be looked at after every answer: first steps by hand, its promise, its power."""

import itertools
import math
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_ray.promote.sequential_test import ODDS, PRIOR, HigherRate, log_factor


def answers_until(rng: random.Random, champion: float, candidate: float, *, needed: float, most: int) -> int | None:
    """Answers of the candidate until the evidence is there, looked at after every outcome; None when it never is."""
    test = HigherRate(block=3)
    for n in range(1, most + 1):
        for _ in range(3):
            test.add(rng.random() < champion, candidate=False)
        test.add(rng.random() < candidate, candidate=True)
        if test.evidence >= needed:
            return n
    return None


def test_the_first_block_is_what_it_is_by_hand():
    test = HigherRate(block=1)
    assert test.evidence == 1
    test.add(False, candidate=False)
    assert test.evidence == 1
    test.add(True, candidate=True)
    # p = 1/2; q = 3/5, 3/4, 9/10, 81/82; m their mean with p. S = (1 - p) q / ((1 - m) m).
    by_hand = [
        (1 / 2) * (3 / 5) / ((9 / 20) * (11 / 20)),
        (1 / 2) * (3 / 4) / ((3 / 8) * (5 / 8)),
        (1 / 2) * (9 / 10) / ((3 / 10) * (7 / 10)),
        (1 / 2) * (81 / 82) / ((21 / 82) * (61 / 82)),
    ]
    assert test.evidence == pytest.approx(sum(by_hand) / 4) == pytest.approx(1.886871, abs=1e-6)


def test_the_second_block_rests_on_the_first():
    test = HigherRate(block=1)
    for outcome, candidate in ((False, False), (True, True), (False, False), (False, True)):
        test.add(outcome, candidate=candidate)
    rate = (PRIOR + 1) / (2 * PRIOR + 2)
    products = [log_factor(0.5, odds, [False], True) + log_factor(rate, odds, [False], False) for odds in ODDS]
    assert test.evidence == pytest.approx(fmean(math.exp(product) for product in products))


def test_outcomes_are_compared_with_those_of_their_own_kind():
    test = HigherRate(block=1)
    test.add(False, candidate=False, kind="short")
    test.add(True, candidate=True, kind="long")
    assert test.evidence == 1
    test.add(False, candidate=False, kind="long")
    assert test.evidence > 1


@given(
    st.floats(0.01, 0.99),
    st.sampled_from(ODDS),
    st.integers(1, 4),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_no_block_is_expected_to_speak_against_a_candidate_that_is_no_worse(
    guess: float, odds: float, block: int, one: float, other: float
):
    candidate, champion = sorted((one, other))
    expected = 0.0
    for *champions, mine in itertools.product((False, True), repeat=block + 1):
        chance = math.prod(champion if yes else 1 - champion for yes in champions)
        chance *= candidate if mine else 1 - candidate
        expected += chance * math.exp(log_factor(guess, odds, champions, mine))
    assert expected <= 1 + 1e-9


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5])
def test_two_equal_rates_are_told_apart_no_more_often_than_promised(rate: float):
    rng = random.Random(11)
    found = [answers_until(rng, rate, rate, needed=20, most=250) for _ in range(200)]
    # 1 / 20 of 200 is 10; measured over 400 runs of 1,000 answers: 0.3 % to 2.2 % at 1 / 40.
    assert sum(n is not None for n in found) <= 10


@pytest.mark.parametrize(("champion", "candidate", "within"), [(0.1, 0.3, 65), (0.05, 0.5, 16), (0.02, 0.98, 6)])
def test_a_higher_rate_is_found_in_so_many_answers_on_average(champion: float, candidate: float, within: int):
    rng = random.Random(12)
    found = [answers_until(rng, champion, candidate, needed=40, most=1000) for _ in range(60)]
    assert fmean(n if n is not None else math.inf for n in found) <= within


def test_a_lower_rate_is_never_found_and_evidence_stays_a_number():
    test = HigherRate(block=1)
    for _ in range(2000):
        test.add(True, candidate=False)
        test.add(False, candidate=True)
    assert 0 <= test.evidence < 1e-6
    for _ in range(20_000):
        test.add(False, candidate=False)
        test.add(True, candidate=True)
    assert test.evidence > 1e100
