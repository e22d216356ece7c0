from dataclasses import replace
from pathlib import Path

import pytest

from sdpo_ray.config import Run, parse_run
from sdpo_ray.io.files import read_json
from sdpo_ray.promote.run_log import parameters, points, write_files
from sdpo_ray.records import Candidate, Decision, Relevance, Report, Snapshot, TokenAttribution
from tests.support.cycle_records import entry

PNG = b"\x89PNG\r\n"


def test_every_key_of_the_run_and_every_fact_of_the_cycle_is_a_parameter():
    run = parse_run({"distill": {"learning_rate": 0.5}})
    of_cycle = parameters(replace(entry(4), run=run))
    assert of_cycle["distill.learning_rate"] == "0.5"
    assert (of_cycle["cycle"], of_cycle["policy_version"], of_cycle["parent_version"]) == ("4", "5", "4")
    assert (of_cycle["commit"], of_cycle["cycle_seed"], of_cycle["num_interactions"]) == ("c0ffee", "40", "2")
    assert (of_cycle["snapshot_digest"], of_cycle["last_batch"]) == ("ab" * 32, "6")


def test_a_table_whose_keys_the_user_names_is_one_parameter():
    """MLflow takes few characters in a name, and no name may be anything that a tenant is called."""
    mix = {"tenant_mix": {"a@b": 0.5, "c d": 0.25}}
    of_cycle = parameters(replace(entry(4), run=parse_run({"curate": mix})))
    assert of_cycle["curate.tenant_mix"] == "{'a@b': 0.5, 'c d': 0.25}"
    assert not [name for name in of_cycle if "@" in name]


def test_curves_scores_intervals_and_refusals_become_points():
    found = [(point.name, point.value, point.step) for point in points(entry(4))]
    assert ("train.loss", 0.5, 1) in found
    assert ("train.sampler_gap", 0.25, 0) in found
    assert ("retention.low", 0.9, 0) in found
    assert ("retention.n", 192.0, 0) in found
    assert ("refused.too_long", 3.0, 0) in found
    assert ("altered.history_cut", 2.0, 0) in found
    assert ("not_drawn.stale", 4.0, 0) in found
    # The weights are 0.3 / 0.4 and 0.1 / 0.2; the second signal is not above its floor.
    assert ("relevance.n", 2.0, 0) in found
    assert ("relevance.below_floor", 0.5, 0) in found
    (median,) = [value for name, value, _ in found if name == "relevance.median_weight"]
    assert median == pytest.approx((0.75 + 0.5) / 2)
    assert len(found) == len(set(found)) == 2 * 11 + 3 + 3 + 2 * 4


def test_a_cycle_without_measured_relevance_has_no_points_of_it():
    assert not [point for point in points(replace(entry(4), relevance=())) if point.name.startswith("relevance")]


def test_the_files_hold_the_records_and_two_pictures(tmp_path: Path):
    recorded = entry(4)
    write_files(recorded, tmp_path)
    for name, record, kind in (
        ("snapshot", recorded.snapshot, Snapshot),
        ("candidate", recorded.candidate, Candidate),
        ("report", recorded.report, Report),
        ("decision", recorded.decision, Decision),
    ):
        assert read_json(tmp_path / f"{name}.json", kind) == record
    assert read_json(tmp_path / "relevance.json", tuple[Relevance, ...]) == recorded.relevance
    assert Run.model_validate_json((tmp_path / "run.json").read_bytes()) == recorded.run
    assert {path.name for path in tmp_path.glob("*.png")} == {"scores.png", "training.png"}
    assert all(path.read_bytes().startswith(PNG) for path in tmp_path.glob("*.png"))


def test_what_a_few_interactions_taught_is_drawn_beside_the_records(tmp_path: Path):
    signal = TokenAttribution(
        interaction_id="a",
        prompt="What is the capital of France?",
        follow_up="Shorter please.",
        tokens=("Paris", "."),
        advantages=(0.25, -1.5),
        logprobs=(-0.5, -0.25),
    )
    recorded = entry(4)
    recorded = replace(recorded, candidate=replace(recorded.candidate, attributions=(signal,)))
    write_files(recorded, tmp_path)
    assert "A = -1.500 nats" in (tmp_path / "attributions.html").read_text()
    assert "what users taught v4" in (tmp_path / "attributions.html").read_text()
    assert (tmp_path / "attributions.png").read_bytes().startswith(PNG)
    assert read_json(tmp_path / "candidate.json", Candidate).attributions == (signal,)


def test_a_report_that_contradicts_itself_is_still_drawn(tmp_path: Path):
    recorded = entry(4)
    impossible = replace(recorded.report.scores[0], value=float("nan"), low=1.0, high=0.0)
    write_files(replace(recorded, report=replace(recorded.report, scores=(impossible,))), tmp_path)
    assert (tmp_path / "scores.png").read_bytes().startswith(PNG)


def test_a_cycle_without_a_step_or_a_score_is_still_drawn(tmp_path: Path):
    recorded = entry(4)
    bare = replace(
        recorded,
        relevance=(),
        candidate=replace(recorded.candidate, steps=()),
        report=replace(recorded.report, scores=()),
    )
    write_files(bare, tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert not (tmp_path / "relevance.json").exists()
