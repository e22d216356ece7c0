"""The entry point `sdpo`: the verbs of jobs/, listed and completed without a heavy import."""

import importlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from jobs.sdpo import VERBS
from tests.support.paths import REPOSITORY

HEAVY = ("ray", "torch", "vllm", "mlflow", "transformers", "deepspeed", "pyarrow", "numpy", "pandas")
PROGRAM = """
import sys
from sdpo_ray.cli.entry import main
sys.argv = ["sdpo", *sys.argv[1:]]
try:
    main()
finally:
    print("heavy", [name for name in {heavy!r} if name in sys.modules])
    print("jobs", sorted(name for name in sys.modules if name.startswith("jobs.")))
"""


def sdpo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", PROGRAM.format(heavy=HEAVY), *arguments]
    return subprocess.run(
        argv, cwd=REPOSITORY, env=os.environ | {"COLUMNS": "140"} | environment, capture_output=True, text=True
    )


def test_the_script_is_declared():
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"sdpo": "sdpo_ray.cli.entry:main"}


def test_every_command_of_jobs_is_a_verb():
    commands = {f"jobs.{path.stem}" for path in (REPOSITORY / "jobs").glob("*.py")} - {"jobs.__init__", "jobs.sdpo"}
    assert sorted(verb.module for verb in VERBS) == sorted(commands)
    assert all(verb.module == f"jobs.{verb.name.replace('-', '_')}" for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_the_listed_help_of_a_verb_is_the_first_line_of_its_own(verb):
    module = importlib.import_module(verb.module)
    own = module.app.info.help if isinstance(getattr(module, "app", None), typer.Typer) else module.main.__doc__
    assert own.splitlines()[0] == verb.help
    assert f"sdpo {verb.name}" in own, "its help has an example"


def test_help_lists_every_verb_and_imports_nothing_heavy():
    done = sdpo("--help")
    assert done.returncode == 0, done.stderr
    assert [verb.name for verb in VERBS if not re.search(rf"^│ {verb.name} ", done.stdout, flags=re.M)] == []
    assert "heavy []" in done.stdout
    assert "jobs ['jobs.sdpo']" in done.stdout


def test_a_verb_runs_its_command():
    done = sdpo("continual", "--print-config", "--set", "distill.learning_rate=0.25")
    assert '"learning_rate": 0.25' in done.stdout, done.stderr
    assert "heavy []" in done.stdout


def test_a_misspelt_verb_is_answered_with_the_nearest():
    done = sdpo("contnual")
    assert done.returncode == 2
    assert "Did you mean 'continual'?" in done.stderr


def test_version_is_that_of_the_project():
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert f"sdpo-ray {version}\n" in sdpo("--version").stdout


@pytest.mark.parametrize(("shell", "registration"), [("bash", "complete -o default -F"), ("zsh", "compdef")])
def test_the_completion_script_of_a_shell_can_be_installed(shell: str, registration: str, tmp_path: Path):
    shown = sdpo("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert registration in shown.stdout
    installed = sdpo(
        "--install-completion", shell, HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert f"{shell} completion installed" in installed.stdout, installed.stderr


def bash(line: str) -> list[str]:
    done = sdpo(_SDPO_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(line.split(" ")) - 1))
    assert "heavy []" in done.stdout
    return done.stdout.partition("heavy")[0].split()


def zsh(line: str) -> str:
    return sdpo(_SDPO_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=line).stdout.partition("heavy")[0]


def test_verbs_options_run_files_and_keys_complete_in_bash():
    assert bash("sdpo con") == ["continual"]
    assert bash("sdpo import-logs --drop") == ["--drop-toxic"]
    assert bash("sdpo deploy --run jobs/recipes/lap") == ["jobs/recipes/laptop.toml"]
    assert bash("sdpo deploy --set distill.learning") == ["distill.learning_rate="]
    assert bash("sdpo keys re") == ["revoke"]


def test_verbs_and_run_files_complete_in_zsh():
    assert '"continual":"Run the training loop' in zsh("sdpo con")
    assert '"jobs/recipes/laptop.toml"' in zsh("sdpo deploy --run jobs/recipes/lap")
    assert zsh("sdpo deploy --run /").strip() == "_files"
