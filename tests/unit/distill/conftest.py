"""The tiny policies that the tests of the learner read."""

from pathlib import Path
from typing import Any

import pytest

from sdpo_ray.distill.model.load import load_packed
from tests.support.builders import tiny_policy


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of random weights. Read only."""
    return tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def other_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another policy of the same shape: a teacher that is not the student. Read only."""
    return tiny_policy(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture
def model(path: Path) -> Any:
    """The policy at `path`, loaded for packed rows."""
    return load_packed(path)
