"""`ray job submit --working-dir . -- python jobs/continual.py`, as the documentation shows it."""

import subprocess
import sys
from pathlib import Path

import pytest

from sdpo_ray.cluster.local_cluster import LocalCluster
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.integration


def test_the_main_job_runs_from_a_copy_of_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with LocalCluster(num_cpus=2, log=tmp_path / "ray.log") as cluster:
        submit = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", cluster.dashboard]
        command = ["python", "jobs/continual.py", "--print-config", "--set", "distill.learning_rate=0.25"]
        done = subprocess.run(
            [*submit, "--working-dir", ".", "--", *command],
            cwd=REPOSITORY,
            env=cluster.environment,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"learning_rate": 0.25' in done.stdout
