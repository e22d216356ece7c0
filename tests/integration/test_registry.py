"""The registry on MLflow with SQLite."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from sdpo_ray.config import parse_run
from sdpo_ray.errors import DataError
from sdpo_ray.io.files import read_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.promote.registry import Registry
from sdpo_ray.records import BASE_VERSION, CycleStart, Decision, Fingerprint, Release, Verdict, version_of_cycle
from tests.support.cycle_records import entry

pytestmark = pytest.mark.integration

CYCLES = count(1)
"""Cycle numbers; each test takes its own, since all share one database, which takes seconds to create."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def registry(root: Path) -> Registry:
    made = Registry(Layout(root), model_name="policy")
    made.register_base(base(root), served=base(root))
    return made


@pytest.fixture
def client(registry: Registry) -> Any:
    """MLflow's client, which its web page and operators use."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=registry.tracking_uri, registry_uri=registry.tracking_uri)


def base(root: Path) -> Release:
    fingerprint = Fingerprint(token_ids=(1, 2), logprobs=(-0.5,))
    return Release(policy_version=BASE_VERSION, path=str(root / "base"), previous_version=None, fingerprint=fingerprint)


def runs_of(client: Any, cycle: int) -> list[Any]:
    experiment = client.get_experiment_by_name("policy")
    return list(client.search_runs([experiment.experiment_id], f"tags.cycle = '{cycle}'"))


def version_of(client: Any, cycle: int) -> Any:
    """The model version of a cycle, by its number."""
    return client.get_model_version("policy", str(version_of_cycle(cycle)))


def versions_tagged(client: Any, policy_version: int) -> list[Any]:
    return list(client.search_model_versions(f"name = 'policy' and tags.policy_version = '{policy_version}'"))


def test_the_base_is_the_first_champion_and_stays_registered_once(root: Path, client: Any):
    fresh = Registry(Layout(root / "fresh"), model_name="policy")
    assert (fresh.champion_version(), fresh.candidate_version()) == (None, None)
    fresh.register_base(base(root), served=base(root))
    fresh.register_base(base(root), served=base(root))
    assert (fresh.champion_version(), fresh.candidate_version()) == (1, None)
    fresh.record_cycle(entry(1, root=root))
    fresh.set_champion(2)
    fresh.register_base(base(root), served=base(root))
    assert fresh.champion_version() == 2


def test_a_cycle_is_one_run_with_everything_to_make_its_candidate_again(registry: Registry, client: Any, root: Path):
    cycle = next(CYCLES)
    recorded = entry(cycle, root=root)
    registry.record_cycle(recorded)
    (run,) = runs_of(client, cycle)
    assert run.info.status == "FINISHED"
    assert run.data.params["commit"] == run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert run.data.params["snapshot_digest"] == recorded.snapshot.digest
    assert run.data.params["distill.learning_rate"] == str(recorded.run.distill.learning_rate)
    assert (run.data.metrics["retention"], run.data.metrics["retention.low"]) == (0.95, 0.9)
    curve = client.get_metric_history(run.info.run_id, "train.loss")
    assert [(point.step, point.value) for point in curve] == [(0, 1.0), (1, 0.5)]
    assert run.data.metrics["not_drawn.stale"] == 4
    assert run.data.metrics["relevance.below_floor"] == 0.5
    decision = Path(client.download_artifacts(run.info.run_id, "decision.json", str(root)))
    assert read_json(decision, Decision) == recorded.decision
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names == {
        "run.json", "snapshot.json", "candidate.json", "report.json", "decision.json", "training.png", "scores.png",
        "relevance.json",
    }  # fmt: skip


@pytest.mark.parametrize("tables", ["", "s3://bucket/prefix"])
def test_the_snapshot_is_an_input_that_mlflow_knows_as_a_delta_table(client: Any, tmp_path: Path, tables: str):
    import mlflow.data
    from mlflow.data.delta_dataset_source import DeltaDatasetSource

    layout = Layout(tmp_path, tables=tables)
    made = Registry(layout, model_name="policy")
    recorded = entry(1, root=tmp_path)
    made.record_cycle(recorded)
    own = type(client)(tracking_uri=made.tracking_uri, registry_uri=made.tracking_uri)
    (run,) = runs_of(own, 1)
    (found,) = [each.dataset for each in run.inputs.dataset_inputs]
    source = mlflow.data.get_source(found)
    assert isinstance(source, DeltaDatasetSource)
    assert source.path == (f"{tables}/interactions" if tables else str(tmp_path / "tables" / "interactions"))
    assert source.delta_table_version == recorded.snapshot.table_version == 7
    assert (found.name, found.digest) == ("s1", recorded.snapshot.digest[:36])
    assert json.loads(found.profile) == {
        "num_interactions": 2,
        "num_held_out": 0,
        "not_drawn": {"stale": 4},
        "rule": "two of two",
        "seed": 10,
        "last_batch": 6,
        "digest": recorded.snapshot.digest,
    }


def test_a_candidate_is_a_model_version_where_it_lies(registry: Registry, client: Any, root: Path):
    cycle = next(CYCLES)
    recorded = entry(cycle, root=root)
    registry.record_cycle(recorded)
    version = version_of(client, cycle)
    assert version.source == Path(recorded.candidate.path).as_uri()
    assert version.run_id == runs_of(client, cycle)[0].info.run_id
    assert version.tags == {
        "policy_version": str(cycle + 1),
        "parent": str(cycle),
        "decision": "HOLD",
        "reasons": "no signal: 0.500 [0.400, 0.600]",
        "status": "held",
    }
    assert version.description == "HOLD: no signal: 0.500 [0.400, 0.600]"
    assert registry.candidate_version() == cycle + 1
    assert registry.champion_version() != cycle + 1


@pytest.mark.parametrize(
    "step",
    ["create_run", "log_batch", "log_inputs", "log_artifacts", "create_model_version",
     "set_registered_model_alias", "set_terminated"],
)  # fmt: skip
@pytest.mark.parametrize("killed", ["before", "after"])
def test_a_cycle_killed_at_any_step_is_recorded_once(
    registry: Registry, client: Any, root: Path, monkeypatch: pytest.MonkeyPatch, step: str, killed: str
):
    cycle = next(CYCLES)
    real: Callable[..., Any] = getattr(type(registry._client), step)

    def die(*args: Any, **kwargs: Any) -> Any:
        if killed == "after":
            real(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(registry._client), step, die)
        with pytest.raises(KeyboardInterrupt):
            registry.record_cycle(entry(cycle, root=root))
    registry.record_cycle(entry(cycle, root=root))
    registry.record_cycle(entry(cycle, root=root))

    (run,) = runs_of(client, cycle)
    (version,) = versions_tagged(client, version_of_cycle(cycle))
    assert int(version.version) == version_of_cycle(cycle)
    assert run.info.status == "FINISHED"
    assert version.run_id == run.info.run_id
    assert len(client.get_metric_history(run.info.run_id, "train.loss")) == 2
    assert len(client.get_metric_history(run.info.run_id, "retention")) == 1
    assert len(run.inputs.dataset_inputs) == 1
    assert registry.candidate_version() == cycle + 1


def test_a_cycle_that_resumes_under_another_commit_keeps_its_first_records(
    registry: Registry, client: Any, root: Path, monkeypatch: pytest.MonkeyPatch
):
    cycle = next(CYCLES)
    with monkeypatch.context() as patched:
        patched.setattr(type(registry._client), "log_inputs", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            registry.record_cycle(entry(cycle, root=root))
    registry.record_cycle(replace(entry(cycle, root=root), commit="another"))
    (run,) = runs_of(client, cycle)
    assert (run.info.status, run.data.params["commit"]) == ("FINISHED", "c0ffee")


def test_a_new_champion_retires_the_old_one(registry: Registry, client: Any, root: Path):
    first, second = next(CYCLES), next(CYCLES)
    for cycle in (first, second):
        registry.record_cycle(entry(cycle, verdict=Verdict.PROMOTE, root=root))
    assert version_of(client, second).tags["status"] == "passed"
    registry.set_champion(version_of_cycle(first))
    registry.set_champion(version_of_cycle(second))
    registry.set_champion(version_of_cycle(second))
    assert registry.champion_version() == version_of_cycle(second)
    assert version_of(client, first).tags["status"] == "retired"
    assert version_of(client, second).tags["status"] == "champion"


@pytest.mark.parametrize(
    ("word", "review"),
    [(None, None), ("approved", "approved"), (" Rejected ", "rejected"), ("looks good", None), ("", None)],
)
def test_a_review_is_a_tag_of_the_model_version(
    registry: Registry, client: Any, root: Path, word: str | None, review: str | None
):
    cycle = next(CYCLES)
    registry.record_cycle(entry(cycle, root=root))
    if word is not None:
        client.set_model_version_tag("policy", version_of(client, cycle).version, "review", word)
    assert registry.review(version_of_cycle(cycle)) == review


def test_an_alias_that_was_moved_or_deleted_is_seen(root: Path, client: Any):
    fresh = Registry(Layout(root / "aliases"), model_name="policy")
    own = type(client)(tracking_uri=fresh.tracking_uri, registry_uri=fresh.tracking_uri)
    fresh.register_base(base(root), served=base(root))
    fresh.record_cycle(entry(1, root=root))
    own.set_registered_model_alias("policy", "champion", "2")
    assert fresh.champion_version() == 2
    own.delete_registered_model_alias("policy", "champion")
    assert fresh.champion_version() is None
    foreign = own.create_model_version("policy", (root / "foreign").as_uri())
    own.set_registered_model_alias("policy", "champion", foreign.version)
    assert fresh.champion_version() is None


def test_tags_are_written_by_policy_version(registry: Registry, client: Any, root: Path):
    cycle = next(CYCLES)
    registry.record_cycle(entry(cycle, root=root))
    registry.tag(version_of_cycle(cycle), "rolled_back", "length ratio 2.4")
    assert version_of(client, cycle).tags["rolled_back"] == "length ratio 2.4"


def test_a_version_that_was_never_recorded_is_refused(registry: Registry):
    for use in (registry.set_champion, registry.review, lambda version: registry.tag(version, "k", "v")):
        with pytest.raises(DataError, match="no version for v999"):
            use(999)


def test_a_reopened_registry_has_the_same_state(registry: Registry, root: Path):
    cycle = next(CYCLES)
    registry.record_cycle(entry(cycle, root=root))
    registry.set_champion(version_of_cycle(cycle))
    again = Registry.of(parse_run({"root": str(root)}))
    assert (again.champion_version(), again.candidate_version()) == (cycle + 1, cycle + 1)


def test_every_model_version_shows_its_verdict_and_its_review(root: Path):
    fresh = Registry(Layout(root / "seen"), model_name="policy")
    fresh.register_base(base(root), served=base(root))
    fresh.record_cycle(entry(1, root=root))
    fresh.tag(2, "review", "approved")
    first, second = fresh.versions()
    assert (first.policy_version, first.status, first.decision, first.review) == (1, "champion", "", "")
    assert (second.policy_version, second.review) == (2, "approved")
    decision = entry(1, root=root).decision
    assert (second.decision, second.reasons) == (decision.verdict.value, "; ".join(decision.reasons))


def start(cycle: int, *, parent: int) -> CycleStart:
    return CycleStart(cycle=cycle, policy_version=version_of_cycle(cycle), parent_version=parent, seed=cycle)


def test_a_cycle_without_a_candidate_is_a_model_version_too_so_that_the_next_ones_number_is_right(
    root: Path, client: Any
):
    fresh = Registry(Layout(root / "failed"), model_name="policy")
    own = type(client)(tracking_uri=fresh.tracking_uri, registry_uri=fresh.tracking_uri)
    fresh.register_base(base(root), served=base(root))
    for _ in range(2):
        fresh.record_failure(start(1, parent=1), "no candidate: gradient norm is nan at step 2")
    fresh.record_cycle(entry(2, verdict=Verdict.PROMOTE, root=root))
    assert fresh.candidate_version() == 3
    failed = own.get_model_version("policy", "2")
    (run,) = runs_of(own, 1)
    assert (failed.run_id, run.info.status) == (run.info.run_id, "FAILED")
    assert failed.source == run.info.artifact_uri
    assert [(each.policy_version, each.status, each.decision) for each in fresh.versions()] == [
        (1, "champion", ""),
        (2, "refused", "REJECT"),
        (3, "passed", "PROMOTE"),
    ]
    assert fresh.versions()[1].reasons == "no candidate: gradient norm is nan at step 2"


def test_a_version_that_was_deleted_does_not_shift_the_next_ones_number(root: Path, client: Any):
    fresh = Registry(Layout(root / "deleted"), model_name="policy")
    own = type(client)(tracking_uri=fresh.tracking_uri, registry_uri=fresh.tracking_uri)
    fresh.register_base(base(root), served=base(root))
    fresh.record_cycle(entry(1, root=root))
    own.delete_model_version("policy", "2")
    fresh.record_cycle(entry(2, root=root))
    assert fresh.candidate_version() == 3
    assert [each.policy_version for each in fresh.versions()] == [1, 3]


@pytest.mark.parametrize(
    ("deleted", "why"), [(False, "that version was created by something else"), (True, "MLflow's next number is 3")]
)
def test_a_foreign_version_in_the_registered_model_is_an_error_that_says_what_to_do(
    root: Path, client: Any, deleted: bool, why: str
):
    fresh = Registry(Layout(root / f"foreign_{deleted}"), model_name="policy")
    own = type(client)(tracking_uri=fresh.tracking_uri, registry_uri=fresh.tracking_uri)
    fresh.register_base(base(root), served=base(root))
    foreign = own.create_model_version("policy", (root / "foreign").as_uri())
    if deleted:
        own.delete_model_version("policy", foreign.version)
    before = len(own.search_model_versions("name = 'policy'"))
    with pytest.raises(DataError, match=rf"v2 cannot be version 2 .*: {why}\. Set promote\.model_name"):
        fresh.record_cycle(entry(1, root=root))
    assert len(own.search_model_versions("name = 'policy'")) == before, "nothing is left of the attempt"


def test_a_registered_model_that_is_younger_than_the_run_gets_every_number_and_its_champion_is_what_is_served(
    root: Path,
):
    young = Registry(Layout(root / "young"), model_name="policy")
    served = replace(base(root), policy_version=4, path=str(root / "candidates" / "v0004"))
    young.register_base(base(root), served=served)
    young.record_cycle(entry(4, root=root))
    assert (young.champion_version(), young.candidate_version()) == (4, 5)
    assert [(each.policy_version, each.status) for each in young.versions()] == [
        (1, "base"), (2, "unrecorded"), (3, "unrecorded"), (4, "champion"), (5, "held"),
    ]  # fmt: skip
