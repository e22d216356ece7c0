"""kill -9 of the continual job in every stage: the training loop resumes, and nothing happens twice."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest

from sdpo_ray.cli.options import LAPTOP
from sdpo_ray.config import load_run
from sdpo_ray.io.files import read_json
from sdpo_ray.pipeline.cycle import STAGES
from sdpo_ray.records import CycleOutcome, Decision, Snapshot, Verdict
from sdpo_ray.records.run_events import RunEvent, StageFinished, StageStarted
from sdpo_ray.simulate.http_clients import talk_all
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.telemetry import read_events
from tests.support.paths import REPOSITORY
from tests.support.serving import Served

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]
# The gate passes any candidate: these tests are about the training loop, not about what it learns.
LENIENT = [
    "promote.min_win_rate=0",
    "promote.min_retention=0",
    "promote.max_retention_drop=1",
    "promote.max_length_ratio=100",
    "promote.max_repetition=1",
    "promote.poll_s=0.5",
    "evaluate.num_prompts=16",
    "curate.min_new_interactions=16",
    "curate.snapshot_size=16",
    "curate.max_age_versions=100",
    "curate.held_out=0",
    "distill.learning_rate=1e-5",
    # The default learner, which resumes its parent's adapter and teacher; the laptop's recipe does not use it.
    "distill.lora.rank=8",
    "distill.teacher.kind=ema",
]


class Job:
    """`jobs/continual.py` as a separate process on the served run."""

    def __init__(self, served: Served, address: str, log: Path) -> None:
        overrides = [*served.overrides, *LENIENT, f"serve.port={urlparse(served.url).port}"]
        self._served = served
        self._argv = [sys.executable, "jobs/continual.py"]
        self._argv += [part for override in overrides for part in ("--set", override)]
        self._environment = os.environ | {"RAY_ADDRESS": address}
        self._log = log
        self.overrides = overrides
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, cycles: int) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._argv, "--cycles", str(cycles)], cwd=REPOSITORY, env=self._environment, stdout=log, stderr=log
            )
        return self.process

    def wait_for_start(self, stage: str, *, after: int = 0) -> None:
        """Wait until an event past the first `after` ones says that this stage started."""
        deadline = time.monotonic() + 120
        while not any(isinstance(e, StageStarted) and e.stage == stage for e in self.events()[after:]):
            assert self.process is not None
            assert self.process.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < deadline, f"{stage} does not start: {self.events()[after:]}"
            time.sleep(0.005)

    def events(self) -> list[RunEvent]:
        return read_events(self._served.layout.events)


@pytest.fixture
def job(served: Served, evaluator: str, ray_cluster: str, tmp_path: Path) -> Iterator[Job]:
    assert evaluator
    job = Job(served, ray_cluster, tmp_path / "job.log")
    yield job
    if job.process is not None and job.process.poll() is None:
        job.process.kill()
        job.process.wait()


@pytest.mark.usefixtures("back_to_base")
def test_a_job_killed_in_every_stage_promotes_once_and_loses_nothing(served: Served, job: Job):
    run = load_run(LAPTOP, [*job.overrides, "simulate.think_s=0.01"])
    traffic = asyncio.run(talk_all(run, base_url=f"{served.url}/v1", conversations=40, stats=None))
    assert traffic.failed == 0
    for stage in ("curate", *STAGES):
        seen = len(job.events())
        process = job.start(cycles=1)
        job.wait_for_start(stage, after=seen)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (served.layout.cycle(1) / "release.json").exists():
            break
    else:
        assert job.start(cycles=1).wait(timeout=120) == 0

    outcome = read_json(served.layout.cycle(1) / "release.json", CycleOutcome)
    assert (outcome.verdict, outcome.policy_version, outcome.champion_version) == (Verdict.PROMOTE, 2, 2)
    assert served.wait_for("x-sdpo-policy-version", "2")
    done = Counter(e.stage for e in job.events() if isinstance(e, StageFinished) and e.stage != "curate")
    assert max(done.values()) == 1
    assert_nothing_lost_or_twice(served, receipts=traffic.receipts)
    assert_one_run_in_mlflow(served)


@pytest.mark.usefixtures("back_to_base")
def test_sigterm_ends_the_job_cleanly_while_it_waits(job: Job):
    seen = len(job.events())
    process = job.start(cycles=0)
    job.wait_for_start("curate", after=seen)
    process.terminate()
    assert process.wait(timeout=30) == 0


@pytest.mark.usefixtures("back_to_base")
def test_a_second_job_on_the_same_run_is_refused_with_a_message(served: Served, job: Job, tmp_path: Path):
    seen = len(job.events())
    first = job.start(cycles=0)
    job.wait_for_start("curate", after=seen)
    second = Job(served, job._environment["RAY_ADDRESS"], tmp_path / "second.log")
    assert second.start(cycles=1).wait(timeout=60) == 2
    assert "another continual job is at work" in (tmp_path / "second.log").read_text()
    first.terminate()
    assert first.wait(timeout=30) == 0


def assert_nothing_lost_or_twice(served: Served, *, receipts: int) -> None:
    turns = Table.turns(served.layout).read(["turn_id"])["turn_id"].to_pylist()
    assert len(turns) == len(set(turns))
    assert len(turns) >= receipts > 0
    ids = Table.interactions(served.layout).read(["interaction_id"])["interaction_id"].to_pylist()
    assert len(ids) == len(set(ids))
    drawn = read_json(served.layout.snapshot(1) / "snapshot.json", Snapshot).interaction_ids
    assert len(drawn) == len(set(drawn)) == 16
    assert read_json(served.layout.cycle(1) / "decide.json", Decision).policy_version == 2


def assert_one_run_in_mlflow(served: Served) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{served.layout.root}/mlflow.db")
    experiment = client.get_experiment_by_name("policy")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id], "tags.cycle = '1'")) == 1
    versions = client.search_model_versions("name = 'policy'")
    assert [int(version.version) for version in versions if version.tags["policy_version"] == "2"] == [2]
    assert int(client.get_model_version_by_alias("policy", "champion").version) == 2
