"""The gate for personal policies, and the statistics of their gain."""

import math
from dataclasses import replace

import pytest

from sdpo_ray.config import PersonalConfig, PromoteConfig
from sdpo_ray.errors import DataError
from sdpo_ray.evaluate.client import Answer
from sdpo_ray.evaluate.discovery import find_probes, scores_of
from sdpo_ray.evaluate.probe import ProbeInput, Suite
from sdpo_ray.evaluate.probes.gain import gain
from sdpo_ray.evaluate.statistics import mean_over_clusters
from sdpo_ray.evaluate.suite import run_suite
from sdpo_ray.promote.gate import MIN_CONVERSATIONS, decide_personal
from sdpo_ray.records import Decision, FinishReason, Gain, Report, Score, Verdict

PROBES = find_probes(Suite.PERSONAL, PromoteConfig())
SPECS = scores_of(PROBES)
REQUIRED_OF_PERSONAL = tuple(spec.name for spec in SPECS if spec.required)
SOUND = {
    "retention": (0.98, 0.95, 0.99),
    "retention.drop_vs_base": (0.01, -0.01, 0.03),
    "collapse.length_ratio": (0.6, 0.5, 0.7),
    "collapse.repetition": (0.0, 0.0, 0.02),
    "collapse.truncated": (0.0, 0.0, 0.02),
    "collapse.empty": (0.0, 0.0, 0.02),
    "gain": (0.03, 0.01, 0.05),
}


def report(n: int = 8, **changed: tuple[float, float, float] | None) -> Report:
    numbers = SOUND | {name.replace("__", "."): each for name, each in changed.items()}
    scores = (Score(name=name, n=n, value=e[0], low=e[1], high=e[2]) for name, e in numbers.items() if e is not None)
    return Report(policy_version=2, base_version=0, champion_version=7, confidence=0.95, scores=tuple(scores))


def decided(found: Report, *, min_gain: float = 0.0) -> Decision:
    return decide_personal(found, PromoteConfig(), PersonalConfig(min_gain=min_gain), SPECS)


def test_a_gain_beyond_doubt_is_served_and_its_numbers_are_the_reason():
    decision = decided(report())
    assert decision.verdict is Verdict.PROMOTE
    assert decision.reasons == ("gain 0.03000 [0.01000, 0.05000] nats a token is above 0",)


@pytest.mark.parametrize("low", [0.0, -0.01])
def test_what_may_be_no_gain_is_held(low: float):
    assert decided(report(gain=(0.03, low, 0.06))).verdict is Verdict.HOLD


def test_less_than_the_run_asks_for_is_held():
    assert decided(report(), min_gain=0.01).verdict is Verdict.HOLD
    assert decided(report(), min_gain=0.009).verdict is Verdict.PROMOTE


def test_going_against_the_user_is_refused():
    decision = decided(report(gain=(-0.03, -0.05, -0.001)))
    assert decision.verdict is Verdict.REJECT
    assert "against what its user asked for" in decision.reasons[0]


def test_a_handful_of_conversations_says_nothing():
    assert decided(report(n=MIN_CONVERSATIONS - 1)).verdict is Verdict.HOLD
    assert decided(report(n=MIN_CONVERSATIONS)).verdict is Verdict.PROMOTE


HARMS = {
    "retention": (0.949, 0.9, 0.96),
    "retention__drop_vs_base": (0.031, 0.0, 0.06),
    "collapse__length_ratio": (2.01, 1.8, 2.2),
    "collapse__repetition": (0.101, 0.06, 0.15),
    "collapse__empty": (0.021, 0.01, 0.05),
}


@pytest.mark.parametrize("harm", HARMS)
def test_no_gain_makes_up_for_what_was_broken(harm: str):
    assert decided(report(**{harm: HARMS[harm]})).verdict is Verdict.REJECT


@pytest.mark.parametrize("name", REQUIRED_OF_PERSONAL)
@pytest.mark.parametrize("wrong", [None, (math.nan, 0.0, 1.0), (0.5, 0.6, 0.7)])
def test_a_score_that_is_missing_or_impossible_is_refused(name: str, wrong: tuple[float, float, float] | None):
    assert decided(report(**{name.replace(".", "__"): wrong})).verdict is Verdict.REJECT


def test_no_win_rate_is_required_of_it():
    assert not any(name.startswith("win_rate") for name in REQUIRED_OF_PERSONAL)


@pytest.mark.parametrize(("clusters", "t"), [(2, 12.7062), (3, 4.3027), (5, 2.7764), (8, 2.3646), (31, 2.0423)])
def test_a_mean_over_clusters_has_students_interval(clusters: int, t: float):
    """Equal sizes: the mean of the clusters' means with its standard error, and t from a printed table."""
    totals = [3.0 * index for index in range(clusters)]
    mean = sum(totals) / (3 * clusters)
    deviation = math.sqrt(sum((total / 3 - mean) ** 2 for total in totals) / (clusters - 1))
    found = mean_over_clusters(totals, [3] * clusters, 0.95)
    assert (found.n, found.value) == (clusters, pytest.approx(mean))
    assert found.high - found.value == pytest.approx(t * deviation / math.sqrt(clusters), rel=1e-4)
    assert found.value - found.low == pytest.approx(found.high - found.value)


def test_large_clusters_weigh_more_and_one_is_none():
    assert mean_over_clusters([10.0, 0.0], [30, 10], 0.95).value == 0.25
    for totals, sizes in (([1.0], [3]), ([], []), ([1.0, 2.0], [3, 0])):
        with pytest.raises(DataError, match="no mean over clusters"):
            mean_over_clusters(totals, sizes, 0.95)


def gained(conversation: str, nats: float, tokens: int = 4) -> Gain:
    return Gain(interaction_id=f"{conversation}/{nats}", conversation=conversation, num_tokens=tokens, nats=nats)


def test_interactions_of_one_conversation_are_one_observation():
    apart = [gained(name, nats) for name, nats in (("a", 0.1), ("b", 0.3), ("c", 0.1), ("d", 0.3))]
    (found,) = gain(apart, confidence=0.95)
    assert (found.name, found.n, found.value) == ("gain", 4, pytest.approx(0.05))
    together = [replace(each, conversation="ab" if each.conversation in "ab" else "cd") for each in apart]
    (found,) = gain(together, confidence=0.95)
    assert (found.n, found.value, found.low, found.high) == (2, *(pytest.approx(0.05),) * 3)
    # Two alike are no proof: the gate wants more conversations than that.
    assert found.n < MIN_CONVERSATIONS


def test_a_report_without_gains_has_no_such_score_and_is_refused():
    answers = tuple(
        Answer(prompt=f"q{n}", text="Paris.", num_tokens=2, finish_reason=FinishReason.STOP, policy_version=5)
        for n in range(20)
    )
    base = tuple(replace(each, policy_version=0) for each in answers)

    def evaluated(*gains: Gain) -> Report:
        measured = ProbeInput(
            candidate=answers, base=base, gains=gains, is_right=lambda prompt, text: True, confidence=0.95
        )
        return run_suite(PROBES, measured, policy_version=5, base_version=0, champion_version=0)

    assert decided(evaluated()).verdict is Verdict.REJECT
    assert decided(evaluated()).reasons == ("gain is missing",)
    good = evaluated(*(gained(str(n), 0.2 + 0.01 * n) for n in range(8)))
    assert {score.name for score in good.scores} == set(REQUIRED_OF_PERSONAL)
    assert decided(good).verdict is Verdict.PROMOTE
    unknown = evaluated(*(gained(str(n), math.nan if n == 3 else 0.2) for n in range(8)))
    assert decided(unknown).verdict is Verdict.REJECT
