"""`jobs/curate.py` from the command line, with recorded turns and imported logs."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from sdpo_ray.io.paths import Layout
from sdpo_ray.tables.arrow_schemas import interactions_from_arrow
from sdpo_ray.tables.delta_table import Table
from tests.support.conversations import dialogue, turn
from tests.support.journals import record
from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.integration


def job(name: str, address: str, *arguments: object) -> str:
    """Standard output of a job; the job must succeed."""
    done = subprocess.run(
        [sys.executable, f"jobs/{name}.py", *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | {"RAY_ADDRESS": address},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_one_run_of_the_job_decides_recorded_and_imported_turns(ray_cluster: str, tmp_path: Path):
    layout = Layout(tmp_path / "run")
    settings = ["--set", f"root={layout.root}", "--set", "curate.max_age_days=1e6"]
    record(layout, *dialogue("ann", follow_ups=2), turn("late", "hello", "nobody said this", "again"))
    logged = tmp_path / "log.jsonl"
    logged.write_text(json.dumps({"prompt": "2+2?", "completion": "5", "user_response": "No, 4."}) + "\n")
    job("import_logs", ray_cluster, logged, "--into", "jobs/recipes/laptop.toml", "--language", "any", *settings)

    told = json.loads(job("curate", ray_cluster, *settings).splitlines()[-1])
    assert (told["turns_ingested"], told["feedback_ingested"], told["interactions_admitted"]) == (5, 1, 3)
    assert (told["undecided"], told["refused"]) == (0, {"unknown_answer": 1})
    found = interactions_from_arrow(Table.interactions(layout).read())
    assert Counter(each.follow_up for each in found) == {
        "shorter, ann says for the 1. time": 1,
        "shorter, ann says for the 2. time": 1,
        "No, 4.": 1,
    }

    again = json.loads(job("curate", ray_cluster, *settings).splitlines()[-1])
    assert (again["turns_ingested"], again["interactions_admitted"], again["interactions_total"]) == (0, 0, 3)
