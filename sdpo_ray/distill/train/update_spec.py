"""One update, as every worker is told it."""

import math
from dataclasses import dataclass
from pathlib import Path

from sdpo_ray.config import DistillConfig
from sdpo_ray.io.files import read_json
from sdpo_ray.records import Gain, Release, Snapshot

CANDIDATE_FILE = "candidate.json"
"""The record in a candidate's directory. Here, so that whoever only starts an update need not import torch."""
GAINS_FILE = "gains.json"
"""A list of `Gain` beside the weights of a personal policy's candidate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSpec:
    """One update. Made by `launch`; the same on every worker."""

    snapshot: Snapshot
    parent: Release
    policy_version: int
    out: Path
    config: DistillConfig
    max_model_len: int
    seed: int
    base: Path
    """The run's base policy, from which drift is measured."""
    scratch: Path
    """Holds `progress.jsonl`, one `StepMetrics` a line for the driver, and checkpoints."""
    apart: Path | None = None
    """Of a personal policy: directory with the interactions that its gain is measured on. It is a new adapter over the
    parent's whole weights, and its record shows nothing that anybody said."""


def read_gains(candidate: Path) -> tuple[Gain, ...]:
    """What a personal policy's candidate gained; nothing where none of what was kept apart could be scored."""
    file = candidate / GAINS_FILE
    return tuple(read_json(file, list[Gain])) if file.exists() else ()


def num_steps(num_examples: int, config: DistillConfig) -> int:
    return config.epochs * math.ceil(num_examples / config.batch_size)
