"""The loop of one Ray Train worker: the parent policy, one optimizer step a batch, the candidate.

Computation is in fp32 under DeepSpeed at any ZeRO stage. Every worker reads the whole snapshot and plans the
whole batch, so no worker waits for a pass that another does not make.
"""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sdpo_ray.chat import ChatFormat
from sdpo_ray.config import Distill
from sdpo_ray.distill.hindsight import Example, examples
from sdpo_ray.errors import DataError, LearnerError, SdpoError
from sdpo_ray.records import Interaction, Refusal, Release, Snapshot, StepMetrics
from sdpo_ray.storage import is_ready, require_ready
from sdpo_ray.tables import read_interactions
from sdpo_ray.telemetry import Counters

_NON_FINITE = "non_finite_advantage"


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
    progress: Path
    """One `StepMetrics` a line, written by the first worker and read by the driver."""


def train(job: Job) -> str | None:
    """What Ray Train runs. Returns why there is no candidate: a refused update would be refused again."""
    try:
        _train(job)
    except SdpoError as error:
        return f"{type(error).__name__}: {error}"
    return None


def num_steps(num_examples: int, config: Distill) -> int:
    return config.epochs * math.ceil(num_examples / config.batch_size)


def _train(job: Job) -> None:
    import ray.train

    from sdpo_ray.distill.export import export, gather_weights
    from sdpo_ray.distill.packing import batches

    if is_ready(job.out):
        # An earlier attempt of this run was lost after it had sealed the candidate.
        return
    refused = Counters.empty()
    parent = Path(job.parent.path)
    usable = examples(_interactions(job.snapshot), ChatFormat(parent), job.max_model_len, refused)
    if not usable:
        raise LearnerError(f"no interaction of {job.snapshot.snapshot_id} can be learned from: {dict(refused.values)}")
    learner = _Learner(parent, job.config)
    first = ray.train.get_context().get_world_rank() == 0
    if first:
        job.progress.write_bytes(b"")
    steps: list[StepMetrics] = []
    for batch in batches(usable, job.config.batch_size, job.config.epochs, job.seed):
        metrics, num_dropped = learner.step(len(steps) + 1, batch)
        steps.append(metrics)
        if num_dropped:
            refused.add(_NON_FINITE, num_dropped)
        if first:
            with job.progress.open("ab") as file:
                file.write(msgspec.json.encode(metrics) + b"\n")
    weights = gather_weights(learner.model, parent)
    if first:
        export(
            weights,
            out=job.out,
            parent=parent,
            policy_version=job.policy_version,
            parent_version=job.parent.policy_version,
            snapshot=job.snapshot,
            steps=tuple(steps),
            refusals=tuple(Refusal(reason=reason, n=n) for reason, n in sorted(refused.values.items())),
        )


def _interactions(snapshot: Snapshot) -> list[Interaction]:
    """What was drawn, in the order of training. Raises NotReady or DataError."""
    interactions = read_interactions(require_ready(Path(snapshot.path)))
    if tuple(interaction.interaction_id for interaction in interactions) != snapshot.interaction_ids:
        raise DataError(f"{snapshot.path} does not hold the interactions of {snapshot.snapshot_id}")
    return interactions


class _Learner:
    """The parent's weights under DeepSpeed on this worker's device."""

    def __init__(self, parent: Path, config: Distill) -> None:
        import ray.train
        import ray.train.torch

        if not config.use_gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        from sdpo_ray.distill.export import load_policy
        from sdpo_ray.distill.logprobs import ResponseScorer

        deepspeed.utils.logger.setLevel(logging.WARNING)
        if not config.use_gpu:
            # It would compile its shared-memory collectives at first use: a minute and a compiler, for what gloo does.
            deepspeed.ops.__compatible_ops__ = {}
        context = ray.train.get_context()
        self._rank, self._num_workers = context.get_world_rank(), context.get_world_size()
        self._device = ray.train.torch.get_device()
        self._config = config
        self.model = load_policy(parent)
        # Dropout would make the teacher and the student two policies.
        scorer = ResponseScorer(self.model).eval()
        self._engine, *_ = deepspeed.initialize(
            model=scorer,
            model_parameters=list(scorer.parameters()),
            config=deepspeed_config(config),
        )

    def step(self, number: int, batch: Sequence[Example]) -> tuple[StepMetrics, int]:
        """One optimizer step; also how many sequences were dropped. Raises LearnerError on every worker."""
        from sdpo_ray.distill.packing import shard
        from sdpo_ray.distill.step import run_step

        mine = shard(
            batch,
            rank=self._rank,
            num_workers=self._num_workers,
            max_tokens=self._config.max_tokens_per_micro_batch,
        )
        sums = run_step(mine, score=self._engine, backward=self._backward, total=self._total, device=self._device)
        gradient_norm = self._apply()
        if not math.isfinite(gradient_norm):
            raise LearnerError(f"step {number}: the gradient's norm is {gradient_norm}")
        metrics = StepMetrics(
            step=number,
            loss=sums.loss,
            mean_advantage=sums.mean_advantage,
            abs_advantage=sums.abs_advantage,
            gradient_norm=gradient_norm,
            num_sequences=sums.num_sequences,
            num_tokens=sums.num_tokens,
            sampler_gap=sums.sampler_gap,
        )
        return metrics, sums.num_dropped

    def _backward(self, loss: Any, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages gradients over workers; the parts of the loss are to be added up.
        self._engine.backward(loss * self._num_workers)

    def _apply(self) -> float:
        """Clip, update, and return the norm of the whole gradient before clipping."""
        import torch

        if self._config.zero_stage:
            self._engine.step()
            return float(self._engine.get_global_grad_norm())
        # Without ZeRO every worker holds the whole reduced gradient, and DeepSpeed keeps no norm of it.
        gradients = [parameter.grad for parameter in self._engine.module.parameters() if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        self._engine.step()
        return norm

    def _total(self, tensor: Any) -> Any:
        import torch.distributed as dist

        if self._num_workers > 1:
            dist.all_reduce(tensor)
        return tensor


def deepspeed_config(config: Distill) -> dict[str, Any]:
    """What DeepSpeed is told: plain AdamW in fp32, accumulation driven by `step.run_step`."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": {"stage": config.zero_stage},
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": config.learning_rate,
                "betas": [0.9, 0.999],
                "eps": 1e-8,
                "weight_decay": 0.0,
                "torch_adam": True,
            },
        },
    }
