"""From an external log to a candidate that transformers loads, with the commands `import_logs` and `distill`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from jobs import distill, import_logs
from sdpo_ray.io.files import is_ready, read_json
from sdpo_ray.records import Candidate
from tests.support.paths import CHECKPOINT

pytestmark = pytest.mark.integration

_TRIPLES = [
    ("What is the capital of France?", "The capital of France is Paris.", "Shorter please."),
    ("What is the capital of Italy?", "The capital of Italy is Rome.", "Just the name."),
    ("What is 3 + 4?", "3 + 4 is 7.", "Only the number."),
    ("What is the capital of Spain?", "Madrid", "Thanks!"),
    ("What is 2 + 2?", "", "You said nothing."),
]


def run(job: Callable[..., None], *arguments: object) -> str:
    """Output of the job; it must succeed."""
    app = typer.Typer()
    app.command()(job)
    done = CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "120"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_log_becomes_a_candidate_and_that_one_a_parent(ray_cluster: str, tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    log = tmp_path / "log.jsonl"
    fields = ("prompt", "completion", "user_response")
    log.write_text("".join(json.dumps(dict(zip(fields, triple, strict=True))) + "\n" for triple in _TRIPLES))
    run(import_logs.main, log, "--out", tmp_path / "logs", "--held-out", 0, "--language", "any")

    keys = (
        "distill.batch_size=2",
        "distill.learning_rate=1e-5",
        "distill.context.text_only=train",
    )
    overrides = [word for key in (f"policy.base={CHECKPOINT}", *keys) for word in ("--set", key)]
    learn: list[object] = ["--snapshot", tmp_path / "logs", *overrides]
    printed = run(distill.main, *learn, "--out", tmp_path / "v1")
    candidate = read_json(tmp_path / "v1" / "candidate.json", Candidate)
    assert is_ready(tmp_path / "v1")
    assert (candidate.policy_version, candidate.parent_version) == (2, 1)
    assert [step.num_sequences for step in candidate.steps] == [2, 2]
    assert candidate.steps[0].abs_advantage > 0
    assert f"vllm serve {tmp_path / 'v1'}" in printed.replace("\n", "")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "v1")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "v1")
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert model(ids).logits.isfinite().all()

    # A snapshot may be moved; the parent's version is read from the parent.
    (tmp_path / "logs").rename(tmp_path / "carried")
    learn[1] = tmp_path / "carried"
    run(distill.main, *learn, "--parent", tmp_path / "v1", "--out", tmp_path / "v2")
    second = read_json(tmp_path / "v2" / "candidate.json", Candidate)
    assert (second.policy_version, second.parent_version) == (3, 2)
    assert second.steps[0].kl_to_base > 0 == candidate.steps[0].kl_to_base


def test_text_is_refused_by_name_unless_it_is_asked_for(ray_cluster: str, tmp_path: Path):
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"prompt": "What is 3 + 4?", "completion": "7", "user_response": "Thanks!"}) + "\n")
    run(import_logs.main, log, "--out", tmp_path / "logs", "--held-out", 0, "--language", "any")
    app = typer.Typer()
    app.command()(distill.main)
    arguments = ["--snapshot", tmp_path / "logs", "--out", tmp_path / "v1", "--set", f"policy.base={CHECKPOINT}"]
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    assert done.exit_code == 2
    assert "text_only" in done.output
    assert not (tmp_path / "v1").exists()
