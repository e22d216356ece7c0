"""Learners in separate processes joined by gloo, as in a Ray Train worker group, without Ray."""

import os
import random
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.example import Example
from sdpo_ray.records import StepMetrics

LENGTHS = (3, 5, 7, 9)
BATCH = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One update of `examples()` in batches of five; with two workers the last batch leaves one shard empty."""

    config: DistillConfig
    epochs: int = 1
    resume_after: int | None = None
    """Save a checkpoint after so many steps and resume in a new learner."""
    checkpoints: Path | None = None
    """Directory of the checkpoint; an existing one is resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """The result of an update: whole tensors on the CPU."""

    weights: dict[str, torch.Tensor]
    teacher: dict[str, torch.Tensor]
    steps: list[StepMetrics]


def examples() -> list[Example]:
    """Eleven interactions of random tokens: one has no scored token, some are stale, some have sampler log-probs."""
    rng = random.Random(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(5, 250) for _ in range(n))

    made = []
    for index in range(11):
        prompt, length = ids(5 + index), LENGTHS[index % 4]
        made.append(
            Example(
                interaction_id=f"e{index:02d}",
                prompt_ids=prompt,
                hindsight_ids=prompt if index == 6 else prompt + ids(4),
                response_ids=ids(length),
                first_scored={3: 2, 7: length}.get(index, 0),
                sampler_logprobs=tuple(-rng.random() * 9 for _ in range(length)) if index % 3 == 0 else (),
                temperature=1.0 if index % 2 else 0.7,
                weight=0.5 if index == 4 else 1.0,
            )
        )
    return made


def learn(policy: Path, cases: Mapping[str, Case], *, num_workers: int, out: Path) -> dict[str, Learned]:
    """Run every case with `num_workers` processes, the same for all cases."""
    out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_worker, (num_workers, port, policy, dict(cases), out), nprocs=num_workers)
    return {name: torch.load(out / f"{name}.pt", weights_only=False) for name in cases}


def _worker(rank: int, num_workers: int, port: int, policy: Path, cases: dict[str, Case], out: Path) -> None:
    os.environ |= {
        "DS_ACCELERATOR": "cpu",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_workers),
    }
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=num_workers)
    for name, case in cases.items():
        learned = _learn(rank, num_workers, policy, case, case.checkpoints or out / f"{name}-checkpoints")
        if rank == 0:
            torch.save(learned, out / f"{name}.pt")
    torch.distributed.destroy_process_group()


def _learn(rank: int, num_workers: int, policy: Path, case: Case, directory: Path) -> Learned:
    from sdpo_ray.distill.data.packing import batches
    from sdpo_ray.distill.loss.drift import BaseScores, load_base, view_of
    from sdpo_ray.distill.train import checkpoint
    from sdpo_ray.distill.train.learner import Learner
    from sdpo_ray.distill.train.zero_gather import gather_parameters, gather_teacher

    def learner() -> Learner:
        return Learner(policy, case.config, num_steps=6, seed=0, rank=rank, num_workers=num_workers)

    current = learner()
    kept = checkpoint.load(directory, current, rank=rank, num_workers=num_workers)
    steps = [] if kept is None else kept[0]
    scorer = load_base(policy, case.config, current.device)
    base = BaseScores(
        view=view_of(scorer, examples()[::2], case.config, same_head=current.has_adapter),
        logprobs={
            item.interaction_id: torch.full((len(item.response_ids) - item.first_scored,), -2.0) for item in examples()
        },
    )
    for index, batch in enumerate(batches(examples(), BATCH, case.epochs, seed=0)):
        if index < current.progress.step:
            continue
        if index == case.resume_after:
            checkpoint.save(directory, current, steps, (), rank=rank, num_workers=num_workers)
            current = learner()
            kept = checkpoint.load(directory, current, rank=rank, num_workers=num_workers)
            assert kept is not None
            steps = kept[0]
        steps.append(current.step(batch, base)[0])
    if case.checkpoints is None:
        shutil.rmtree(directory, ignore_errors=True)
    return Learned(
        weights=gather_parameters(current.trained, keep=rank == 0),
        teacher={}
        if case.config.teacher.kind == "live"
        else gather_teacher(current.teacher, current.trained, keep=rank == 0),
        steps=steps,
    )
