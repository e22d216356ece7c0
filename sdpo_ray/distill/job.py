"""One update, as every worker is told it."""

import math
from dataclasses import dataclass
from pathlib import Path

from sdpo_ray.config import Distill
from sdpo_ray.records import Release, Snapshot

CANDIDATE_FILE = "candidate.json"
"""The record in a candidate's directory. Here, so that whoever only starts an update need not import torch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One update. Made by `launch`; the same on every worker."""

    snapshot: Snapshot
    parent: Release
    policy_version: int
    out: Path
    config: Distill
    max_model_len: int
    seed: int
    base: Path
    """The run's base policy, from which drift is measured."""
    scratch: Path
    """Holds `progress.jsonl`, one `StepMetrics` a line for the driver, and checkpoints."""


def num_steps(num_examples: int, config: Distill) -> int:
    return config.epochs * math.ceil(num_examples / config.batch_size)
