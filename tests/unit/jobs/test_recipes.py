"""Every run file in jobs/recipes/ loads, renders and dry-runs; two of them are Table 5 of arXiv 2603.12273."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from jobs import distill
from sdpo_ray.chat import ChatFormat
from sdpo_ray.config import Run, load_run, parse_run
from sdpo_ray.distill.train.memory import MemoryEstimate, estimate
from sdpo_ray.distill.train.memory_report import verdict
from tests.support.builders import interaction, snapshot, tiny_policy
from tests.support.paths import REPOSITORY

RECIPES = REPOSITORY / "jobs" / "recipes"
SMALL = [
    "--set",
    "distill.optimizer=adamw_8bit",
    "--set",
    "distill.workers.activation_checkpointing=true",
]
A100_GIB, H200_GIB = 80e9 / 2**30, 141e9 / 2**30


def run(*arguments: object) -> tuple[int, str]:
    """Exit status of jobs/distill.py, and what it printed."""
    app = typer.Typer()
    app.command()(distill.main)
    done = CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "200"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def recipe(name: str) -> Run:
    return load_run(RECIPES / f"{name}.toml")


def needed(name: str, *overrides: str) -> MemoryEstimate:
    resolved = load_run(RECIPES / f"{name}.toml", overrides)
    return estimate(REPOSITORY / resolved.policy.shape, resolved.distill, resolved.policy.max_model_len)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_prints_its_resolved_configuration_and_dry_runs(path: Path):
    status, printed = run("--run", path, "--print-config")
    assert status == 0
    assert parse_run(json.loads(printed)) == load_run(path)
    status, printed = run("--run", path, "--dry-run", "--gpu-gib", H200_GIB)
    assert status == 0
    assert "at its peak" in printed
    assert "fits:" in printed


def test_the_recipes_are_columns_of_table_5():
    summaries, chats = recipe("qwen3_4b_1gpu"), recipe("qwen3_8b_8gpu")
    columns = [
        (
            run.distill.context.max_prompt_tokens,
            run.distill.context.max_response_tokens,
            run.distill.learning_rate,
            run.distill.batch_size,
            run.distill.epochs,
            run.distill.warmup,
            run.distill.schedule,
            run.distill.optimizer,
        )
        for run in (summaries, chats)
    ]
    assert columns == [
        (1024, 258, 5e-6, 16, 1, 0.0, "constant", "adamw"),
        (2048, 2048, 5e-6, 32, 1, 0.0, "constant", "adamw_8bit"),
    ]
    for run in (summaries, chats):
        assert (run.distill.preset, run.distill.teacher.kind, run.distill.lora.rank) == ("paper_online", "live", 0)
        context = run.distill.context
        # The text of the hindsight block is under a hundred tokens.
        longest = (context.max_prompt_tokens or 0) + (context.max_response_tokens or 0) + context.max_follow_up_tokens
        assert longest + 100 <= run.policy.max_model_len


def test_the_recipes_fit_where_their_comments_say():
    assert "fits:" in verdict(needed("qwen3_4b_1gpu"), H200_GIB)
    assert "does not fit" in verdict(needed("qwen3_4b_1gpu"), A100_GIB)
    assert "fits:" in verdict(needed("qwen3_4b_1gpu", *SMALL[1::2]), A100_GIB)
    assert "fits:" in verdict(needed("qwen3_8b_8gpu"), H200_GIB)
    assert "does not fit" in verdict(needed("qwen3_8b_8gpu"), A100_GIB)
    assert "fits:" in verdict(needed("qwen3_8b_8gpu", SMALL[3]), A100_GIB)


def test_the_verdict_on_a_worker_that_does_not_fit_names_the_key_to_change():
    activations = verdict(needed("qwen3_8b_8gpu"), A100_GIB)
    assert "set activation_checkpointing" in activations
    states = verdict(needed("qwen3_8b_8gpu", "distill.workers.num_workers=1", "distill.optimizer=adamw"), A100_GIB)
    assert "share it out" in states


def test_a_group_that_may_shrink_is_judged_by_its_fewest_workers():
    asked = ["--run", RECIPES / "qwen3_8b_8gpu.toml", "--dry-run", "--gpu-gib", H200_GIB]
    status, printed = run(*asked, "--set", "distill.workers.min_workers=1")
    assert status == 0
    assert "with the 1 workers of min_workers" in printed
    assert "does not fit" in printed


def test_a_dry_run_counts_the_steps_and_tokens_of_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import torch

    from sdpo_ray.io.files import write_json

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    chat = ChatFormat(tiny_policy(tmp_path / "policy"))
    drawn = snapshot(tmp_path / "s", [interaction(chat, name=f"t{index}") for index in range(33)])
    write_json(tmp_path / "s" / "snapshot.json", drawn)
    turn = interaction(chat).turn
    tokens = len(turn.prompt_ids) + len(turn.response_ids)
    status, printed = run("--dry-run", "--snapshot", tmp_path / "s", "--set", "distill.epochs=2")
    assert status == 0
    # Batches of 16: three an epoch, the last of one interaction.
    assert "6: 33 interactions, epochs: 2" in printed
    assert f"{tokens} on average" in printed
    assert "fit" not in printed, "nobody named a GPU, and there is none"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --snapshot DIR and --out DIR, or --dry-run"),
        (["--dry-run", "--set", "policy.base=/nowhere"], "set policy.base to a policy's directory, or policy.shape"),
        (["--snapshot", "/nowhere", "--out", "x"], "/nowhere has no snapshot.json"),
        (["--dry-run", "--set", "distill.optimizer=adamw_8bit"], "needs workers.use_gpu"),
    ],
)
def test_a_missing_argument_is_named_in_the_error(arguments: list[str], words: str):
    status, printed = run(*arguments)
    assert status == 2
    assert words in printed


def test_a_parent_that_is_not_a_policy_is_refused_before_ray_is_started(tmp_path: Path):
    from sdpo_ray.io.files import write_json

    chat = ChatFormat(tiny_policy(tmp_path / "policy"))
    drawn = snapshot(tmp_path / "s", [interaction(chat)])
    write_json(tmp_path / "s" / "snapshot.json", drawn)
    status, printed = run("--snapshot", tmp_path / "s", "--out", tmp_path / "v1", "--parent", tmp_path / "s")
    assert status == 2
    assert f"there is no policy at {tmp_path / 's'}" in printed


def test_a_dry_run_needs_neither_ray_nor_deepspeed():
    code = (
        "import sys, sdpo_ray.distill.train.memory_report\nfrom sdpo_ray.config import load_run\n"
        f"sdpo_ray.distill.train.memory_report.show(load_run({str(RECIPES / 'qwen3_4b_1gpu.toml')!r}), None, 131)\n"
        "print([name for name in ('ray', 'deepspeed', 'vllm', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "4,022,468,096" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
