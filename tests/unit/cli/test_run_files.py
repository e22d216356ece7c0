"""Which file `--run` names, and what the shell completes."""

from pathlib import Path

import pytest

from sdpo_ray.cli.run_files import LAPTOP, complete_override, complete_run_file, locate_run_file


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_is_found_by_its_path_from_any_directory(elsewhere: Path):
    assert locate_run_file(Path("jobs/recipes/laptop.toml")) == LAPTOP


def test_a_file_here_comes_before_a_recipe_of_the_same_path(elsewhere: Path):
    here = Path("jobs/recipes/laptop.toml")
    here.parent.mkdir(parents=True)
    here.touch()
    assert locate_run_file(here) == here


def test_a_missing_file_keeps_its_name_for_the_error(elsewhere: Path):
    assert locate_run_file(Path("missing.toml")) == Path("missing.toml")


def test_completion_offers_toml_files_here_and_recipes(elsewhere: Path):
    for name in ("mine.toml", "mine.json", "other.toml"):
        (elsewhere / name).touch()
    assert complete_run_file("mi") == ["mine.toml"]
    assert complete_run_file("jobs/recipes/l") == ["jobs/recipes/laptop.toml"]
    assert {"mine.toml", "other.toml", "jobs/recipes/laptop.toml"} <= set(complete_run_file(""))


def test_completion_leaves_absolute_paths_to_the_shell(elsewhere: Path):
    assert complete_run_file("/") == complete_run_file("~/") == complete_run_file("../") == []


def test_completion_offers_keys_of_the_run_file():
    assert complete_override("distill.learning") == ["distill.learning_rate="]
