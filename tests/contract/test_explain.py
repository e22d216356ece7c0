"""`jobs/explain.py` as a person runs it, on the shipped policy: no cluster, a page, pictures, plain words."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sdpo_ray.chat import ChatFormat
from sdpo_ray.io.paths import Layout
from sdpo_ray.tables.arrow_schemas import interactions_to_arrow
from sdpo_ray.tables.delta_table import Table
from tests.support.builders import interaction
from tests.support.paths import CHECKPOINT, REPOSITORY

pytestmark = pytest.mark.slow

CASES = REPOSITORY.parent / "shared" / "data" / "sdpo_signal_cases" / "signal_analysis_cases.json"
PNG = b"\x89PNG\r\n"


def explain(root: Path, *arguments: str, module: bool = False) -> subprocess.CompletedProcess[str]:
    program = ["-m", "jobs.explain"] if module else [str(REPOSITORY / "jobs" / "explain.py")]
    return subprocess.run(
        [sys.executable, *program, *arguments, "--set", f"root={root}", "--set", f"policy.base={CHECKPOINT}"],
        cwd=REPOSITORY,
        env=os.environ | {"COLUMNS": "120"},
        capture_output=True,
        text=True,
    )


def test_a_case_of_ones_own_becomes_a_page_pictures_and_a_table(tmp_path: Path):
    stated = {
        "id": "stated",
        "prompt": "What is the capital of France?",
        "completion": "Sure! The capital of France is Paris. Many people visit that city every year.",
        "user_response": "Shorter please.",
        "unrelated": "What is 27*4?",
    }
    asked = {"id": "asked", "prompt": "What does a cow say?", "user_response": "Just the answer <b>please</b>."}
    (tmp_path / "cases.json").write_text(json.dumps([stated, asked]))
    done = explain(tmp_path / "run", "--case", str(tmp_path / "cases.json"), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"index.html", "cells.png"}
    assert all(path.read_bytes().startswith(PNG) for path in out.glob("*.png"))
    page = (out / "index.html").read_text()
    assert "Just the answer &lt;b&gt;please&lt;/b&gt;." in page
    # The complaint says what was too long: the token that goes on after "Sure!" loses most.
    first = page[page.index("Shorter please.") : page.index("What is 27*4?")]
    sizes = [float(size) for size in re.findall(r"A = ([+-][\d.]+) nats", first)]
    assert min(sizes) < -2
    assert "the run&#39;s base" not in page
    assert "(the run's base, since nothing is released yet)" in done.stdout
    assert "stated" in done.stdout
    assert str(out / "index.html") in done.stdout


def test_the_authors_cases_are_answered_by_the_policy_and_drawn(tmp_path: Path):
    if not CASES.exists():
        pytest.skip(f"{CASES} is not on this machine")
    done = explain(tmp_path / "run", "--case", str(CASES), "--out", str(tmp_path / "out"), module=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "cells.png").stat().st_size > 1000
    page = (tmp_path / "out" / "index.html").read_text()
    for case in json.loads(CASES.read_text())["cases"]:
        assert case["id"] in page
    assert page.count('class="sheet"') == 28


def test_a_turn_of_a_run_is_explained_by_the_policy_that_answered_it(tmp_path: Path):
    asked = interaction(ChatFormat(CHECKPOINT), name="0b8c-1", response="The capital of France is Paris.")
    Table.interactions(Layout(tmp_path / "run")).append(interactions_to_arrow([asked]), {})
    listed = explain(tmp_path / "run")
    assert "0b8c-1" in listed.stdout, listed.stderr
    done = explain(tmp_path / "run", "--turn", "0b8c-1", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "(v1, which made the answer)" in done.stdout
    assert "Turn 0b8c-1" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--turn", "gone"), "no turn gone in the tables"),
        ((), "no interactions under"),
        (("--turn", "a", "--case", "b.json"), "not both"),
        (("--case", "missing.json"), "there is no file missing.json"),
    ],
)
def test_what_cannot_be_explained_is_said_in_plain_words(tmp_path: Path, arguments: tuple[str, ...], words: str):
    done = explain(tmp_path / "run", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_policy_that_is_not_there_is_named(tmp_path: Path):
    (tmp_path / "case.json").write_text(json.dumps({"prompt": "a", "completion": "b", "user_response": "c"}))
    done = explain(tmp_path, "--case", str(tmp_path / "case.json"), "--policy", str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert f"there is no policy in {tmp_path / 'nothing'}" in done.stderr
    assert "Traceback" not in done.stderr
