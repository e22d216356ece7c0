"""What a candidate shows of its interactions, without those that were erased. Its weights stay: they are not text."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from sdpo_ray.io.files import read_json, write_json
from sdpo_ray.records import Candidate


def without(candidate: Candidate, erased: Collection[str]) -> Candidate:
    """The same candidate where it shows none of these interactions."""
    kept = tuple(signal for signal in candidate.signals if signal.interaction_id not in erased)
    return candidate if len(kept) == len(candidate.signals) else replace(candidate, signals=kept)


def forget_in_file(path: Path, erased: Collection[str]) -> bool:
    """Replace the candidate's record at `path` where it shows one of these interactions. Raises DataError."""
    before = read_json(path, Candidate)
    after = without(before, erased)
    if after is before:
        return False
    write_json(path, after)
    return True
