"""The benchmark of a step, at its smallest size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.slow

BENCHMARK = REPOSITORY / "benchmarks" / "sdpo_step.py"


def test_all_implementations_have_the_loss_and_gradient_of_the_reference(tmp_path: Path) -> None:
    record_file, tables = tmp_path / "step.json", tmp_path / "step.md"
    command = [sys.executable, str(BENCHMARK), "--shape", "smoke", "--batch-size", "3", "--scale", "0.05"]
    command += ["--repeats", "1", "--peer-micro-batch", "2", "--max-tokens", "64"]
    done = subprocess.run(
        [*command, "--json", str(record_file), "--markdown", str(tables)],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(record_file.read_text())
    assert {"speed_vs_authors", "speed_vs_trl", "extra_memory_vs_trl"} <= record.keys()
    assert all(record[name] > 0 for name in ("speed_vs_authors", "speed_vs_trl", "extra_memory_vs_trl"))
    assert record["grad_cosine"] > 0.9999
    results = record["implementations"]
    assert set(results) == {"ours", "trl", "authors"}
    for name, result in results.items():
        assert result["loss"] == pytest.approx(record["reference_loss"], abs=1e-5), name
        assert result["grad_cosine"] > 0.9999, name
    assert "| ours |" in tables.read_text()
