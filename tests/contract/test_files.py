"""What must never be committed, and what must agree with something else."""

import re
import subprocess

import yaml

from sdpo_ray.cli.options import LAPTOP
from sdpo_ray.cluster.serve_deploy import serve_config
from sdpo_ray.config import Run, load_run
from tests.support.paths import REPOSITORY

BINARY = {".png", ".safetensors"}


def tracked_texts() -> dict[str, str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    paths = [REPOSITORY / name for name in listed.stdout.split("\0") if name]
    return {str(p.relative_to(REPOSITORY)): p.read_text() for p in paths if p.suffix not in BINARY and p.exists()}


def test_lock_files_hold_versions_and_no_addresses():
    for lock in (REPOSITORY / "requirements").glob("*.lock"):
        pins = [line for line in lock.read_text().splitlines() if not line.startswith("#")]
        assert len(pins) > 100
        assert [pin for pin in pins if not re.fullmatch(r"[a-zA-Z0-9._\-\[\],]+==[^ ]+( ; .*)?", pin)] == []


def test_no_path_of_the_machine_it_was_made_on_is_committed():
    here = re.compile(rf"{re.escape(str(REPOSITORY))}\b|/root/|/opt/wheels|/opt/pypi")
    own = "tests/contract/test_files.py"
    assert [name for name, text in tracked_texts().items() if name != own and here.search(text)] == []


def test_no_to_do_is_left_in_the_code():
    marks = re.compile(r"\b(TODO|FIXME|XXX)\b")
    own = "tests/contract/test_files.py"
    found = [n for n, text in tracked_texts().items() if n.endswith(".py") and n != own and marks.search(text)]
    assert found == []


def test_the_serve_config_is_the_default_runs():
    config = yaml.safe_load((REPOSITORY / "serve" / "config.yaml").read_text())
    defaults = Run().serve
    assert config["http_options"] == {"host": defaults.host, "port": defaults.port}
    for application in config["applications"]:
        assert (REPOSITORY / application["args"]["run_file"]).exists()


def test_the_serve_config_with_a_canary_has_one_application_more():
    plain, more = (yaml.safe_load((REPOSITORY / "serve" / name).read_text()) for name in ("config.yaml", "canary.yaml"))
    canary = more["applications"].pop()
    assert more == plain
    assert (canary["name"], canary["route_prefix"], canary["args"]["audience"]) == ("canary", "/canary", "canary")


def test_a_run_that_puts_candidates_on_canary_is_deployed_with_a_canary():
    def deployed(*overrides: str) -> list[str]:
        run = load_run(LAPTOP, overrides)
        return [each["name"] for each in serve_config(run, LAPTOP, list(overrides))["applications"]]

    assert deployed() == ["policy", "evaluator"]
    for mode in ("canary", "shadow"):
        assert deployed(f"promote.canary.mode={mode}") == ["policy", "evaluator", "canary"]
