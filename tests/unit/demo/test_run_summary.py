"""The claims of the demo, and the plot of a run."""

from dataclasses import replace

import pytest

from sdpo_ray.demo.run_plot import draw
from sdpo_ray.demo.run_summary import EvaluatedVersion, Requests, Summary, WinRate, failures
from sdpo_ray.evaluate.statistics import Estimate
from sdpo_ray.records import Verdict


def estimate(value: float, n: int = 192) -> Estimate:
    return Estimate(value=value, low=value - 0.05, high=min(1.0, value + 0.04), n=n)


GOOD = Summary(
    seed=0,
    promotions=3,
    refusals=1,
    refusal_reasons=("retention 0.10 [0.05, 0.20] is under 0.950",),
    holds=0,
    champion_version=4,
    win_rate=WinRate(ties_dropped=estimate(0.95), ties_half=estimate(0.8), coverage=estimate(0.7)),
    retention=estimate(0.98),
    evaluated=tuple(
        EvaluatedVersion(
            policy_version=version,
            verdict=verdict,
            interactions=128 * version,
            win_rate=estimate(0.6 + 0.1 * version),
            retention=estimate(0.97),
            reasons=("win rate 0.6",),
        )
        for version, verdict in enumerate((Verdict.PROMOTE, Verdict.HOLD, Verdict.REJECT), start=1)
    ),
    requests=Requests(total=1000, failed=0, errors={}),
    conversations=500,
    interactions=490,
    refused={},
    max_versions_per_response=1,
    turns_receipted=1000,
    turns_stored=1000,
    correction_to_served_s={"v1": 30.0},
    cycle_s={"1": 30.0},
    stage_s={"draw": 0.1},
    total_s={"total": 300.0},
)


def test_a_run_that_supports_every_claim_has_no_failures():
    assert failures(GOOD) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"promotions": 2}, "promotions"),
        ({"refusals": 0}, "refusal"),
        ({"refusal_reasons": ("because",)}, "numbers"),
        ({"win_rate": None}, "win rate"),
        ({"win_rate": replace(GOOD.win_rate, ties_dropped=estimate(0.89))}, "win rate"),
        ({"retention": estimate(0.94)}, "right answers"),
        ({"retention": estimate(0.99, n=127)}, "right answers"),
        ({"requests": Requests(total=10, failed=1, errors={"x": 1})}, "failed request"),
        ({"max_versions_per_response": 2}, "one version"),
        ({"turns_stored": 999}, "stored"),
        ({"turns_receipted": 0, "turns_stored": 0}, "stored"),
    ],
)
def test_each_claim_that_does_not_hold_is_named(change, word):
    (failure,) = failures(replace(GOOD, **change))
    assert word in failure


def test_the_plot_is_drawn_with_and_without_promotions(tmp_path):
    for evaluated in (GOOD.evaluated, GOOD.evaluated[1:], ()):
        draw(replace(GOOD, evaluated=evaluated), tmp_path / "figure.png")
        assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
