"""The specification of one update, the same on every worker, and the files that it leaves in a candidate's directory.

Imports neither torch nor Ray, so that a process that only starts an update need not load them.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from sdpo_ray.config import DistillConfig
from sdpo_ray.io.files import read_json
from sdpo_ray.records import Gain, Release, Snapshot

CANDIDATE_FILE = "candidate.json"
"""The `Candidate` record in its own directory."""
GAINS_FILE = "gains.json"
"""A list of `Gain` beside the weights of a personal policy's candidate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSpec:
    """One update. Made by `launch`; read by `train_loop`."""

    snapshot: Snapshot
    parent: Release
    policy_version: int
    out: Path
    config: DistillConfig
    max_model_len: int
    seed: int
    base: Path
    """Directory of the run's base policy, from which drift is measured."""
    scratch: Path
    """Directory of `progress.jsonl`, one `StepMetrics` a line for the driver, and of checkpoints."""
    held_out: Path | None = None
    """For a personal policy: directory of the interactions that its gain is measured on. The update then trains a new
    adapter over the parent's whole weights, and its records hold no user text."""


def read_gains(candidate: Path) -> tuple[Gain, ...]:
    """The gains of a personal policy's candidate; empty where no held-out interaction could be scored."""
    file = candidate / GAINS_FILE
    return tuple(read_json(file, list[Gain])) if file.exists() else ()


def num_steps(num_examples: int, config: DistillConfig) -> int:
    """Optimizer steps of an update."""
    return config.epochs * math.ceil(num_examples / config.batch_size)
