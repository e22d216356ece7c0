import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_ray.config import PromoteConfig
from sdpo_ray.evaluate.discovery import find_probes, scores_of
from sdpo_ray.evaluate.probe import Suite
from sdpo_ray.promote import gate
from sdpo_ray.records import Decision, Report, Score, Verdict

RULES = PromoteConfig()
SPECS = scores_of(find_probes(Suite.SHARED, RULES))
REQUIRED = tuple(spec.name for spec in SPECS if spec.required)
CHAMPION = "win_rate.vs_champion.ties_half"
GOOD = {
    "retention": (0.98, 0.95, 0.99),
    "retention.drop_vs_base": (0.01, -0.01, 0.03),
    "collapse.length_ratio": (0.6, 0.5, 0.7),
    "collapse.repetition": (0.0, 0.0, 0.02),
    "collapse.truncated": (0.0, 0.0, 0.02),
    "collapse.empty": (0.0, 0.0, 0.02),
    CHAMPION: (0.7, 0.64, 0.76),
}
TIE = (0.5, 0.45, 0.55)
LOSS = (0.4, 0.34, 0.46)


def report(**scores: tuple[float, float, float] | None) -> Report:
    """A good candidate's report with some scores changed, or left out where None. Dots are written as __."""
    named = {name.replace("__", "."): numbers for name, numbers in scores.items()}
    numbers = {name: GOOD.get(name, (0.8, 0.7, 0.9)) for name in REQUIRED} | named
    return Report(
        policy_version=3,
        base_version=0,
        champion_version=2,
        confidence=0.95,
        scores=tuple(
            Score(name=name, n=192, value=triple[0], low=triple[1], high=triple[2])
            for name, triple in numbers.items()
            if triple is not None
        ),
    )


def decide(found: Report, rules: PromoteConfig) -> Decision:
    return gate.decide(found, rules, SPECS)


def decided(**scores: tuple[float, float, float] | None) -> Decision:
    return decide(report(**scores), RULES)


HARMS = {
    "nothing": {},
    "retention": {"retention": (0.949, 0.92, 0.97)},
    "drop": {"retention__drop_vs_base": (0.031, 0.0, 0.06)},
    "length": {"collapse__length_ratio": (2.01, 1.8, 2.2)},
    "repetition": {"collapse__repetition": (0.101, 0.06, 0.15)},
    "empty": {"collapse__empty": (0.021, 0.01, 0.05)},
}
SIGNALS = {"better": GOOD[CHAMPION], "equal": TIE, "worse": LOSS}
EXPECTED = {"better": Verdict.PROMOTE, "equal": Verdict.HOLD, "worse": Verdict.REJECT}


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("harm", HARMS)
def test_harm_rejects_whatever_the_win_rate_and_else_the_win_rate_decides(harm: str, signal: str):
    decision = decided(**HARMS[harm], win_rate__vs_champion__ties_half=SIGNALS[signal])
    assert decision.verdict is (EXPECTED[signal] if harm == "nothing" else Verdict.REJECT)
    assert decision.policy_version == 3
    assert len(decision.reasons) == max(1, (harm != "nothing") + (signal == "worse"))


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ({"retention": (0.95, 0.9, 0.98)}, Verdict.PROMOTE),
        ({"retention__drop_vs_base": (0.03, 0.0, 0.06)}, Verdict.PROMOTE),
        ({"retention__drop_vs_base": (-0.3, -0.4, -0.2)}, Verdict.PROMOTE),
        ({"collapse__length_ratio": (2.0, 1.9, 2.1)}, Verdict.PROMOTE),
        ({"collapse__length_ratio": (0.05, 0.04, 0.06)}, Verdict.PROMOTE),
        ({"collapse__repetition": (0.1, 0.05, 0.2)}, Verdict.PROMOTE),
        ({"collapse__empty": (0.02, 0.0, 0.04)}, Verdict.PROMOTE),
        ({"collapse__truncated": (1.0, 0.9, 1.0)}, Verdict.PROMOTE),
        ({"win_rate__vs_champion__ties_half": (0.6, 0.5, 0.7)}, Verdict.HOLD),
        ({"win_rate__vs_champion__ties_half": (0.6, 0.501, 0.7)}, Verdict.PROMOTE),
        ({"win_rate__vs_champion__ties_half": (0.4, 0.3, 0.5)}, Verdict.HOLD),
        ({"win_rate__vs_champion__ties_half": (0.4, 0.3, 0.499)}, Verdict.REJECT),
        ({"win_rate__vs_base__ties_half": (0.1, 0.0, 0.2)}, Verdict.PROMOTE),
    ],
)
def test_a_bound_itself_is_allowed_and_must_be_beaten_by_the_win_rate(
    scores: dict[str, tuple[float, float, float]], verdict: Verdict
):
    assert decided(**scores).verdict is verdict


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_score_rejects_and_is_named(name: str):
    decision = decided(**{name.replace(".", "__"): None})
    assert decision.verdict is Verdict.REJECT
    assert decision.reasons == (f"{name} is missing",)


@pytest.mark.parametrize("broken", range(3))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", REQUIRED)
def test_a_score_that_is_no_number_rejects_and_is_named(name: str, value: float, broken: int):
    triple = list(GOOD.get(name, (0.8, 0.7, 0.9)))
    triple[broken] = value
    decision = decided(**{name.replace(".", "__"): tuple(triple)})
    assert decision.verdict is Verdict.REJECT
    assert [name in reason and "not a number" in reason for reason in decision.reasons] == [True]


def test_a_score_outside_its_own_interval_rejects():
    assert decided(retention=(0.99, 0.5, 0.6)).reasons == (
        "retention 0.990 [0.500, 0.600] lies outside its own interval",
    )


def test_a_score_without_answers_rejects_but_a_win_rate_without_decided_pairs_does_not():
    whole = report()

    def emptied(name: str) -> Decision:
        scores = tuple(replace(s, n=0) if s.name == name else s for s in whole.scores)
        return decide(replace(whole, scores=scores), RULES)

    assert emptied("retention").reasons == ("retention rests on no answer",)
    assert emptied("win_rate.vs_champion.ties_dropped").verdict is Verdict.PROMOTE


def test_an_empty_report_rejects_with_every_name():
    empty = replace(report(), scores=())
    assert decide(empty, RULES).reasons == tuple(f"{name} is missing" for name in REQUIRED)


def test_reasons_carry_the_numbers_that_decided():
    assert decided().reasons == ("win_rate.vs_champion.ties_half 0.700 [0.640, 0.760] against v2 is above 0.500",)
    assert decided(win_rate__vs_champion__ties_half=TIE).reasons == (
        "no signal: win_rate.vs_champion.ties_half 0.500 [0.450, 0.550] against v2 is not above 0.500 with its low end",
    )
    assert decided(
        retention=(0.781, 0.72, 0.83),
        retention__drop_vs_base=(0.2, 0.14, 0.26),
        win_rate__vs_champion__ties_half=LOSS,
    ).reasons == (
        "retention 0.781 [0.720, 0.830] is under 0.950",
        "retention.drop_vs_base 0.200 [0.140, 0.260] is over 0.030",
        "win_rate.vs_champion.ties_half 0.400 [0.340, 0.460]: it loses to the champion",
    )


ORDER = {Verdict.REJECT: 0, Verdict.HOLD: 1, Verdict.PROMOTE: 2}
SHARE = st.floats(0, 1)


@st.composite
def reports(draw: st.DrawFn) -> Report:
    """Any report whose scores are possible."""

    def triple(most: float = 1.0) -> tuple[float, float, float]:
        low, value, high = sorted(draw(st.tuples(*[st.floats(0, most)] * 3)))
        return value, low, high

    near = st.sampled_from([0.0, 0.01, 0.02, 0.1])
    changed: dict[str, tuple[float, float, float]] = {"win_rate__vs_champion__ties_half": triple()}
    if draw(st.booleans()):
        changed["retention"] = triple()
    for name in ("retention__drop_vs_base", "collapse__repetition", "collapse__empty"):
        value = draw(near)
        changed[name] = (value, value, value)
    changed["collapse__length_ratio"] = triple(3.0)
    return report(**changed)


def shifted(before: Report, name: str, by: float) -> Report:
    """`before` with one score and its interval moved."""
    scores = tuple(
        replace(s, value=s.value + by, low=s.low + by, high=s.high + by) if s.name == name else s for s in before.scores
    )
    return replace(before, scores=scores)


@pytest.mark.parametrize(
    ("name", "worse"),
    [
        ("retention", -1),
        ("retention.drop_vs_base", 1),
        ("collapse.length_ratio", 1),
        ("collapse.repetition", 1),
        ("collapse.empty", 1),
        (CHAMPION, -1),
    ],
)
@given(before=reports(), by=SHARE)
def test_a_worse_score_never_helps(name: str, worse: int, before: Report, by: float):
    after = decide(shifted(before, name, worse * by), RULES)
    assert ORDER[after.verdict] <= ORDER[decide(before, RULES).verdict]


@given(before=reports(), dropped=st.sampled_from(REQUIRED))
def test_a_missing_score_never_helps(before: Report, dropped: str):
    without = replace(before, scores=tuple(s for s in before.scores if s.name != dropped))
    assert decide(without, RULES).verdict is Verdict.REJECT


@given(before=reports(), bound=SHARE)
def test_stricter_rules_never_help(before: Report, bound: float):
    strict = RULES.model_copy(update={"min_retention": max(RULES.min_retention, bound), "max_repetition": 0.0})
    assert ORDER[decide(before, strict).verdict] <= ORDER[decide(before, RULES).verdict]


@given(before=reports())
def test_every_decision_says_why(before: Report):
    decision = decide(before, RULES)
    assert decision.reasons
    assert all(any(char.isdigit() for char in reason) for reason in decision.reasons)
