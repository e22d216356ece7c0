"""Which commit an MLflow run names."""

import subprocess
from pathlib import Path

import pytest

from sdpo_ray.io import code_version
from tests.support.paths import REPOSITORY


def head(repository: Path) -> str:
    return subprocess.check_output(["git", "-C", str(repository), "rev-parse", "HEAD"], text=True).strip()


def test_a_checkout_gives_its_commit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SDPO_COMMIT", raising=False)
    assert code_version.code_commit() == head(REPOSITORY)


def test_the_environment_names_the_commit_of_a_copy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SDPO_COMMIT", "abc")
    assert code_version.code_commit() == "abc"


def test_a_wheel_inside_another_repository_does_not_give_that_repositorys_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.delenv("SDPO_COMMIT", raising=False)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    installed = tmp_path / ".venv" / "site-packages"
    installed.mkdir(parents=True)
    monkeypatch.setattr(code_version, "_INSTALLED", installed)
    assert code_version.code_commit() == ""
