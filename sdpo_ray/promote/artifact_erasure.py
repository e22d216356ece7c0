"""Removes erased interactions from what a candidate's record shows of them. Its weights stay: they are not text."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from sdpo_ray.io.files import read_json, write_json
from sdpo_ray.records import Candidate


def without(candidate: Candidate, erased: Collection[str]) -> Candidate:
    """The candidate without its attributions of these interactions; the same object where it has none."""
    kept = tuple(attribution for attribution in candidate.attributions if attribution.interaction_id not in erased)
    return candidate if len(kept) == len(candidate.attributions) else replace(candidate, attributions=kept)


def erase_in_file(path: Path, erased: Collection[str]) -> bool:
    """Replace the candidate's record at `path` where it shows one of these interactions; whether it did.

    Raises DataError for a file that is no candidate.
    """
    before = read_json(path, Candidate)
    after = without(before, erased)
    if after is before:
        return False
    write_json(path, after)
    return True
