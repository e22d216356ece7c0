"""Paths that tests read from."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CHECKPOINT = REPOSITORY / "sdpo_ray" / "simulate" / "tiny_policy" / "checkpoint"
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
"""Public data sets that are not part of the repository; tests that need one skip where it is absent."""
