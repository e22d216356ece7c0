"""The refusal to start beside other packages called `serve` or `jobs`."""

from pathlib import Path

import pytest

from sdpo_ray.cli.entry import require_own_packages
from sdpo_ray.errors import ConfigError
from tests.support.paths import REPOSITORY


def test_own_packages_are_accepted_from_any_directory(tmp_path: Path):
    require_own_packages(tmp_path)
    require_own_packages(REPOSITORY)


def test_a_directory_of_that_name_without_an_init_file_hides_nothing(tmp_path: Path):
    (tmp_path / "serve").mkdir()
    require_own_packages(tmp_path)


@pytest.mark.parametrize("other", ["serve.py", "jobs/__init__.py"])
def test_a_module_of_that_name_in_the_working_directory_is_refused(tmp_path: Path, other: str):
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).touch()
    with pytest.raises(ConfigError, match="start the command in another directory"):
        require_own_packages(tmp_path)


def test_another_package_of_that_name_on_the_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    (tmp_path / "path" / "serve").mkdir(parents=True)
    (tmp_path / "path" / "serve" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "serve", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "path")
    with pytest.raises(ConfigError, match="an environment of its own"):
        require_own_packages(tmp_path)
