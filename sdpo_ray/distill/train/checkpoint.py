"""Checkpoints from which a restarted worker group resumes: weights, optimizer, teacher, random state, data position.

DeepSpeed writes its own shards; each worker adds its part of the rest. The first worker writes the READY marker when
all have finished. Shards can be read only by as many workers as wrote them: a group that restarts smaller resumes an
update that is not sharded, and starts a sharded one again.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sdpo_ray.distill.train.learner import Learner
from sdpo_ray.io.files import READY, fsync_directory, is_ready
from sdpo_ray.records import RefusalCount, StepMetrics

_TAG = "engine"


def save(
    directory: Path,
    learner: Learner,
    steps: list[StepMetrics],
    refused: tuple[RefusalCount, ...],
    *,
    rank: int,
    num_workers: int,
) -> None:
    """Write a checkpoint of the current step into `directory`, then remove older ones. Collective."""
    final = directory / f"step-{learner.progress.step:06d}-by-{num_workers}"
    final.mkdir(parents=True, exist_ok=True)
    learner.engine.save_checkpoint(
        str(final), tag=_TAG, save_latest=False, exclude_frozen_parameters=learner.has_adapter
    )
    state = {
        "progress": learner.progress,
        "shadow": learner.teacher.shadow,
        "random": torch.get_rng_state(),
        "steps": steps,
        "refused": refused,
    }
    torch.save(state, final / f"rank-{rank}.pt")
    _wait(num_workers)
    if rank == 0:
        (final / READY).touch()
        fsync_directory(final)
        for older in directory.glob("step-*"):
            if older != final:
                shutil.rmtree(older)
    _wait(num_workers)


def load(
    directory: Path, learner: Learner, *, rank: int, num_workers: int
) -> tuple[list[StepMetrics], tuple[RefusalCount, ...]] | None:
    """Load the newest complete checkpoint that fits this group into the learner; None where there is none. Collective.

    Returns the steps and the counted reasons so far.
    """
    pattern = f"step-*-by-{num_workers if learner.is_sharded else '*'}"
    found = [path for path in sorted(directory.glob(pattern)) if is_ready(path)]
    if not found:
        return None
    learner.engine.load_checkpoint(
        str(found[-1]), tag=_TAG, load_module_strict=not learner.has_adapter, load_lr_scheduler_states=False
    )
    file = found[-1] / f"rank-{rank if learner.is_sharded else 0}.pt"
    # `weights_only=False`, because the file holds records too; it was written by this project.
    state: dict[str, Any] = torch.load(file, map_location=learner.device, weights_only=False)
    learner.progress = state["progress"]
    learner.teacher.load(state["shadow"])
    torch.set_rng_state(state["random"].cpu())
    return state["steps"], state["refused"]


def _wait(num_workers: int) -> None:
    if num_workers > 1:
        dist.barrier()
