"""What a lost worker group goes on from: weights, optimizer, teacher, random state and place in the data.

DeepSpeed writes its own shards; each worker adds its part of the rest. The marker is written last, by the first
worker, when all have finished. Shards are read by as many workers as wrote them: a group that comes back smaller begins
a sharded update anew, and goes on with one that is not sharded.
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
    """Write a checkpoint of the present step into `directory`; older ones go when it is whole. Collective."""
    final = directory / f"step-{learner.progress.step:06d}-by-{num_workers}"
    final.mkdir(parents=True, exist_ok=True)
    learner.engine.save_checkpoint(
        str(final), tag=_TAG, save_latest=False, exclude_frozen_parameters=learner.has_adapter
    )
    kept = {
        "progress": learner.progress,
        "shadow": learner.teacher.shadow,
        "random": torch.get_rng_state(),
        "steps": steps,
        "refused": refused,
    }
    torch.save(kept, final / f"rank-{rank}.pt")
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
    """Put the newest whole checkpoint that fits into the learner; None where there is none. Collective."""
    pattern = f"step-*-by-{num_workers if learner.is_sharded else '*'}"
    found = [path for path in sorted(directory.glob(pattern)) if is_ready(path)]
    if not found:
        return None
    learner.engine.load_checkpoint(
        str(found[-1]), tag=_TAG, load_module_strict=not learner.has_adapter, load_lr_scheduler_states=False
    )
    mine = found[-1] / f"rank-{rank if learner.is_sharded else 0}.pt"
    # Our own file, beside the candidate: its records are not tensors alone.
    kept: dict[str, Any] = torch.load(mine, map_location=learner.device, weights_only=False)
    learner.progress = kept["progress"]
    learner.teacher.load(kept["shadow"])
    torch.set_rng_state(kept["random"].cpu())
    return kept["steps"], kept["refused"]


def _wait(num_workers: int) -> None:
    if num_workers > 1:
        dist.barrier()
