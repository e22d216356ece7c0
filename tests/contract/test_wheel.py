"""The wheel: what is in it, and that its commands run from it alone, in another directory."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.support.paths import REPOSITORY

pytestmark = pytest.mark.slow
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
OFFLINE = ["--no-deps", "--no-index"]


def tracked(*directories: str) -> set[str]:
    listed = subprocess.check_output(["git", "ls-files", "-z", *directories], cwd=REPOSITORY, text=True)
    return {name for name in listed.split("\0") if name and (REPOSITORY / name).exists()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files, since setuptools writes into the tree that it builds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked("pyproject.toml", "README.md", "sdpo_ray", "serve", "jobs"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, source / name)
    subprocess.run([*PIP, "wheel", *OFFLINE, "--no-build-isolation", "-w", str(out), str(source)], check=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    subprocess.run([*PIP, "install", *OFFLINE, "--target", str(target), str(wheel)], check=True)
    return target


@pytest.fixture
def sdpo(installed: Path, tmp_path: Path):
    """Runs the script in an empty directory with only the wheel's files on the path."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(installed)}
        argv = [str(installed / "bin" / "sdpo"), *arguments]
        return subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def test_the_wheel_holds_every_file_of_the_three_packages_and_nothing_else(wheel: Path):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == tracked("sdpo_ray", "serve", "jobs")


def test_the_script_answers_from_an_installation(sdpo, installed: Path):
    done = sdpo("--help")
    assert done.returncode == 0, done.stderr
    assert "continual" in done.stdout
    where = subprocess.run(
        [sys.executable, "-c", "import jobs.sdpo, serve; print(jobs.__file__, serve.__file__)"],
        cwd=installed.parent, env=os.environ | {"PYTHONPATH": str(installed)}, capture_output=True, text=True,
    )  # fmt: skip
    assert where.stdout.split() == [str(installed / name / "__init__.py") for name in ("jobs", "serve")]


def test_a_recipe_is_found_in_an_installation(sdpo):
    done = sdpo("continual", "--print-config", "--run", "jobs/recipes/laptop.toml")
    assert done.returncode == 0, done.stderr
    assert '"learning_rate": 0.0004' in done.stdout


def test_a_deployment_names_the_installed_run_file(sdpo, installed: Path):
    done = sdpo("deploy", "--print")
    assert done.returncode == 0, done.stderr
    for application in yaml.safe_load(done.stdout)["applications"]:
        assert application["import_path"] == "serve.app:build"
        assert application["args"]["run_file"] == str(installed / "jobs" / "recipes" / "laptop.toml")
