"""What a lost worker group goes on from: weights, optimizer, teacher, random state and place in the data.

DeepSpeed writes its own shards; each worker adds its part of the rest. The marker is written last, by the first
worker, when all have finished.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sdpo_ray.distill.learner import Learner
from sdpo_ray.records import Refusal, StepMetrics
from sdpo_ray.storage import READY, fsync_directory, is_ready

_TAG = "engine"


def save(
    directory: Path,
    learner: Learner,
    steps: list[StepMetrics],
    refused: tuple[Refusal, ...],
    *,
    rank: int,
    workers: int,
) -> None:
    """Write a checkpoint of the present step into `directory`; older ones go when it is whole. Collective."""
    final = directory / f"step-{learner.progress.step:06d}"
    final.mkdir(parents=True, exist_ok=True)
    lora = any(not parameter.requires_grad for parameter in learner.model.parameters())
    learner.engine.save_checkpoint(str(final), tag=_TAG, save_latest=False, exclude_frozen_parameters=lora)
    torch.save(
        {
            "progress": learner.progress,
            "shadow": learner.teacher.shadow,
            "random": torch.get_rng_state(),
            "steps": steps,
            "refused": refused,
        },
        final / f"rank-{rank}.pt",
    )
    _wait(workers)
    if rank == 0:
        (final / READY).touch()
        fsync_directory(final)
        for older in sorted(directory.glob("step-*")):
            if older != final:
                shutil.rmtree(older)
    _wait(workers)


def load(directory: Path, learner: Learner, *, rank: int) -> tuple[list[StepMetrics], tuple[Refusal, ...]] | None:
    """Put the newest whole checkpoint in `directory` into the learner; None where there is none. Collective."""
    found = [path for path in sorted(directory.glob("step-*")) if is_ready(path)]
    if not found:
        return None
    learner.engine.load_checkpoint(str(found[-1]), tag=_TAG, load_module_strict=False, load_lr_scheduler_states=False)
    # Our own file, beside the candidate: its records are not tensors alone.
    kept: dict[str, Any] = torch.load(found[-1] / f"rank-{rank}.pt", map_location=learner.device, weights_only=False)
    learner.progress = kept["progress"]
    learner.teacher.load(kept["shadow"])
    torch.set_rng_state(kept["random"].cpu())
    return kept["steps"], kept["refused"]


def _wait(workers: int) -> None:
    if workers > 1:
        dist.barrier()
