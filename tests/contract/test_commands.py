"""The commands in jobs/: short, documented, and quick to answer `--help` and `--print-config`."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sdpo_ray.config import keys, load_run
from tests.support.paths import REPOSITORY

COMMANDS = sorted(path.stem for path in (REPOSITORY / "jobs").glob("*.py") if path.stem not in ("__init__", "sdpo"))
JOBS = [name for name in COMMANDS if name not in ("demo", "import_logs", "keys")]
"""Those with `--print-config`."""
MAX_LINES = 80
HEAVY = ("ray", "torch", "vllm", "mlflow", "transformers", "deepspeed", "pyarrow")
PROBE = """
import runpy, sys
sys.argv = [{path!r}, *{arguments!r}]
try:
    runpy.run_path({path!r}, run_name="__main__")
except SystemExit as end:
    print("exit", end.code or 0)
print("heavy", [name for name in {heavy!r} if name in sys.modules])
"""


def run_job(job: str, *arguments: str) -> str:
    path = str(REPOSITORY / "jobs" / f"{job}.py")
    probe = PROBE.format(path=path, arguments=list(arguments), heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", probe], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout


def test_jobs_holds_commands_of_less_than_80_lines_and_recipes():
    for path in (REPOSITORY / "jobs").iterdir():
        if path.is_dir():
            assert path.name in ("recipes", "__pycache__")
        elif path.name != "__init__.py":
            source = path.read_text()
            assert len(source.splitlines()) < MAX_LINES, path.name
            assert source.rstrip().splitlines()[-2] == 'if __name__ == "__main__":', path.name


@pytest.mark.parametrize("job", COMMANDS)
def test_help_teaches_before_anything_heavy_is_imported(job: str):
    out = run_job(job, "--help")
    assert "Usage" in out
    assert "exit 0" in out
    assert "heavy []" in out


@pytest.mark.parametrize("job", JOBS)
def test_print_config_gives_the_resolved_run_before_anything_heavy_is_imported(job: str):
    out = run_job(job, "--print-config", "--set", "distill.learning_rate=0.25")
    config, _, rest = out.partition("exit 0")
    assert json.loads(config)["distill"]["learning_rate"] == 0.25
    assert "heavy []" in rest


@pytest.mark.parametrize("job", JOBS)
def test_a_misspelt_key_is_answered_with_the_right_one_and_no_traceback(job: str):
    argv = [sys.executable, f"jobs/{job}.py", "--set", "distill.learnin_rate=1"]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean distill.learning_rate?" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_recipe_loads():
    recipes = sorted((REPOSITORY / "jobs" / "recipes").glob("*.toml"))
    assert recipes
    for recipe in recipes:
        load_run(recipe)


def test_every_job_and_every_make_target_is_in_the_readme():
    readme = (REPOSITORY / "README.md").read_text()
    assert [job for job in COMMANDS if f"jobs/{job}.py" not in readme and f"{job}.py" not in readme] == []
    targets = re.findall(r"^([a-z]+):.*##", (REPOSITORY / "Makefile").read_text(), flags=re.M)
    assert [target for target in targets if f"make {target}" not in readme and target != "help"] == []


def test_the_keys_of_a_run_file_are_these():
    """Adding a key means adding it here, in view of the reviewer: every knob needs a reader."""
    listed = (Path(__file__).parent / "config_keys.txt").read_text().split()
    assert sorted(keys()) == listed


def test_the_deployment_can_be_read_before_it_is_made_and_more_replicas_change_no_argument():
    out = run_job("deploy", "--print", "--set", "serve.port=8123")
    config = yaml.safe_load(out.partition("exit 0")[0])
    assert config["http_options"]["port"] == 8123
    arguments = {each["name"]: each["args"] for each in config["applications"]}
    scaled = run_job("deploy", "--print", "--set", "serve.port=8123", "--set", "serve.num_replicas=2")
    more = yaml.safe_load(scaled.partition("exit 0")[0])
    assert {each["name"]: each["args"] for each in more["applications"]} == arguments
    assert more["applications"][0]["deployments"][0]["num_replicas"] == 2
    assert arguments["policy"]["overrides"] == ["serve.port=8123"]
    assert load_run(arguments["policy"]["run_file"]).serve.port == 8000
    assert arguments["evaluator"]["audience"] == "evaluator"
