"""Review, rejection and rollback by an operator, through MLflow's client and a real engine."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlparse

import pytest
from mlflow import MlflowClient

from sdpo_ray.cli.options import LAPTOP
from sdpo_ray.config import CanaryConfig, load_run
from sdpo_ray.curate.pipeline import Curator
from sdpo_ray.eventlog.factory import open_log
from sdpo_ray.io.files import read_json, write_json
from sdpo_ray.pipeline.stages import Pipeline
from sdpo_ray.promote.canary import begin, current
from sdpo_ray.promote.model_versions import ModelVersions
from sdpo_ray.promote.registry import Registry
from sdpo_ray.records import (
    BASE_VERSION,
    Candidate,
    CycleOutcome,
    CycleStart,
    Decision,
    Release,
    Report,
    Verdict,
    cycle_of_version,
)
from sdpo_ray.records.run_events import ReviewAwaited
from sdpo_ray.telemetry import EventFile, read_events
from tests.support.paths import REPOSITORY
from tests.support.serving import Served, perturbed, release_of

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240), pytest.mark.usefixtures("back_to_base")]


class Office:
    """The training loop and the registry of a run, and candidates for them."""

    def __init__(self, served: Served, folder: Path, *overrides: str) -> None:
        self.served = served
        self.folder = folder
        self.overrides = [
            *served.overrides,
            f"serve.port={urlparse(served.url).port}",
            "promote.poll_s=0.2",
            *overrides,
        ]
        self.registry = Registry(served.layout, model_name="policy")
        base = read_json(served.layout.release(BASE_VERSION), Release)
        self.registry.register_base(base, served=base)
        self.registry.set_champion(BASE_VERSION)
        self.mlflow = MlflowClient(self.registry.tracking_uri, self.registry.tracking_uri)
        self.pipeline = self.pipeline_with()

    def pipeline_with(self, *overrides: str) -> Pipeline:
        run = load_run(LAPTOP, [*self.overrides, *overrides])
        log = open_log(self.served.layout, run.capture)
        curator = Curator(self.served.layout, log, curate=run.curate, capture=run.capture)
        return Pipeline(run, curator, self.registry, EventFile(self.served.layout.events))

    def candidate(self, version: int, verdict: Verdict) -> tuple[CycleStart, Candidate, Report, Decision]:
        """A candidate that was evaluated against the base and judged; its cycle's records and model version exist."""
        path = perturbed(self.served.base, self.folder / f"v{version}", seed=version)
        candidate = Candidate(
            policy_version=version,
            parent_version=BASE_VERSION,
            path=str(path),
            snapshot_id="s",
            fingerprint=release_of(path, version).fingerprint,
        )
        decision = Decision(policy_version=version, verdict=verdict, reasons=("win rate 0.61",))
        write_json(self.served.layout.cycle(cycle_of_version(version)) / "distill.json", candidate)
        write_json(self.served.layout.cycle(cycle_of_version(version)) / "decide.json", decision)
        ModelVersions(self.mlflow, "policy").register(version, str(path), {"status": "passed"}, "")
        base = BASE_VERSION
        report = Report(policy_version=version, base_version=base, champion_version=base, confidence=0.95, scores=())
        begun = CycleStart(cycle=cycle_of_version(version), policy_version=version, parent_version=base, seed=0)
        return begun, candidate, report, decision

    def person_sets(self, version: int, tag: str, value: str) -> None:
        """Set a tag on a model version, as MLflow's page does."""
        self.mlflow.set_model_version_tag("policy", str(version), tag, value)

    def person_moves_champion(self, version: int) -> None:
        self.mlflow.set_registered_model_alias("policy", "champion", str(version))


@pytest.fixture
def office(served: Served, tmp_path: Path) -> Iterator[Office]:
    office = Office(served, tmp_path, "promote.require_review=true")
    yield office
    office.registry.set_champion(BASE_VERSION)


def decide_in_background(office: Office, version: int, *, review: str) -> CycleOutcome:
    """Run the release stage; the reviewer answers once it waits for the review."""
    work = office.candidate(version, Verdict.PROMOTE)
    seen = len(read_events(office.served.layout.events))
    with ThreadPoolExecutor(1) as pool:
        stage = pool.submit(office.pipeline.stages.release, *work)
        try:
            while not any(isinstance(e, ReviewAwaited) for e in read_events(office.served.layout.events)[seen:]):
                assert not stage.done()
                time.sleep(0.05)
            time.sleep(0.5)
            assert not stage.done()
            assert office.served.health()["x-sdpo-policy-version"] == "1"
        finally:
            office.person_sets(version, "review", review)
        return stage.result(timeout=60)


def test_an_approved_candidate_is_served_only_after_its_approval(office: Office):
    outcome = decide_in_background(office, 201, review="Approved")
    assert (outcome.verdict, outcome.champion_version) == (Verdict.PROMOTE, 201)
    assert office.served.health()["x-sdpo-policy-version"] == "201"
    assert office.registry.champion_version() == 201


def test_a_rejected_candidate_is_never_served_not_even_by_moving_the_alias(office: Office):
    outcome = decide_in_background(office, 202, review="rejected")
    assert (outcome.verdict, outcome.champion_version) == (Verdict.REJECT, BASE_VERSION)
    office.person_moves_champion(202)
    office.pipeline.promotion.sync_alias()
    assert office.registry.champion_version() == BASE_VERSION
    assert office.served.health()["x-sdpo-policy-version"] == "1"


def test_serving_follows_an_alias_to_a_released_version_and_restores_one_that_never_passed(office: Office):
    decide_in_background(office, 203, review="approved")
    office.person_moves_champion(BASE_VERSION)
    office.pipeline.promotion.sync_alias()
    office.served.wait_for("x-sdpo-policy-version", "1")
    office.candidate(204, Verdict.HOLD)
    office.person_moves_champion(204)
    office.pipeline.promotion.sync_alias()
    assert office.registry.champion_version() == BASE_VERSION
    assert office.served.health()["x-sdpo-policy-version"] == "1"


def test_a_champion_that_changed_after_the_evaluation_holds_the_candidate(office: Office):
    pipeline = office.pipeline_with("promote.require_review=false")
    pipeline.stages.release(*office.candidate(205, Verdict.PROMOTE))
    outcome = pipeline.stages.release(*office.candidate(206, Verdict.PROMOTE))
    assert (outcome.verdict, outcome.champion_version) == (Verdict.HOLD, 205)
    assert "the champion became v205" in outcome.reasons[0]


def test_an_engine_that_refuses_a_release_rejects_it_and_the_old_one_serves(office: Office):
    pipeline = office.pipeline_with("promote.require_review=false")
    work = office.candidate(207, Verdict.PROMOTE)
    (Path(work[1].path) / "model.safetensors").unlink()
    outcome = pipeline.stages.release(*work)
    assert (outcome.verdict, outcome.champion_version) == (Verdict.REJECT, BASE_VERSION)
    assert "refused v207" in outcome.reasons[0]
    assert office.registry.champion_version() == BASE_VERSION


def test_the_rollback_job_serves_the_release_before_and_ends_a_canary(office: Office):
    decide_in_background(office, 208, review="approved")
    _, on_canary, _, _ = office.candidate(209, Verdict.HOLD)
    champion = read_json(office.served.layout.release(208), Release)
    begin(office.served.layout, on_canary, champion, CanaryConfig(mode="shadow", share=0.01))
    argv = [sys.executable, "jobs/rollback.py", *(part for o in office.overrides for part in ("--set", o))]
    done = subprocess.run(argv, cwd=REPOSITORY, env=os.environ.copy(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "v1 is served again" in done.stdout
    assert current(office.served.layout) is None
    assert office.served.health()["x-sdpo-policy-version"] == "1"
    assert office.registry.champion_version() == BASE_VERSION


def test_a_rollback_to_an_unknown_version_lists_the_released_ones(office: Office):
    argv = [sys.executable, "jobs/rollback.py", "--to", "999", *(p for o in office.overrides for p in ("--set", o))]
    done = subprocess.run(argv, cwd=REPOSITORY, env=os.environ.copy(), capture_output=True, text=True)
    assert done.returncode == 2
    assert "v999 was never released; released so far: v1" in done.stderr
