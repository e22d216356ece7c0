"""Fixtures of several integration tests."""

from pathlib import Path

import pytest

from sdpo_ray.records import Candidate
from tests.support.adapters import adapted
from tests.support.builders import tiny_policy
from tests.support.paths import CHECKPOINT


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny policy of random weights. Read only."""
    return tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="session")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Candidate]:
    """Two adapters over the base, which differ by more than noise. Read only."""
    folder = tmp_path_factory.mktemp("candidates")
    return {version: adapted(CHECKPOINT, folder / f"v{version}", version=version, seed=version) for version in (2, 3)}
