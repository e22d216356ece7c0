"""Fixtures of several integration tests."""

import pytest

from sdpo_ray.records import Candidate
from tests.support.adapters import adapted
from tests.support.paths import CHECKPOINT


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Candidate]:
    """Adapters over the base, which differ by more than noise."""
    folder = tmp_path_factory.mktemp("candidates")
    return {version: adapted(CHECKPOINT, folder / f"v{version}", version=version, seed=version) for version in (1, 2)}
