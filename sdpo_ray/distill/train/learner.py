"""The policy in training under DeepSpeed on this worker's device: one optimizer step per batch.

Needs an initialised process group of DeepSpeed's backend; does not use Ray.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.example import HINDSIGHT, PROMPT, Example
from sdpo_ray.distill.data.packing import micro_batches, rows, shard
from sdpo_ray.distill.loss.drift import BaseScores
from sdpo_ray.distill.loss.step import StepPolicy, StepSums, run_step
from sdpo_ray.distill.loss.teacher import Teacher
from sdpo_ray.distill.model import lora_adapter
from sdpo_ray.distill.model.load import checkpoint_activations, compute_dtype, load_packed
from sdpo_ray.distill.model.packed_lm import PackedLM, scores_of
from sdpo_ray.distill.train.deepspeed_engine import deepspeed_config, deepspeed_engine, learning_rate
from sdpo_ray.distill.train.zero_gather import restore_teacher
from sdpo_ray.errors import LearnerError
from sdpo_ray.records import StepMetrics

_BASELINE_RATE = 0.1
"""Of the moving average of the batches' mean advantages."""


@dataclass(slots=True, kw_only=True)
class LearnerProgress:
    """State of a learner besides its tensors. Saved and restored by `checkpoint`."""

    step: int = 0
    baseline: float = 0.0
    """Moving average of the batches' mean advantages, in nats; `signal.baseline = "ema_scalar"` subtracts it."""


class Learner:
    """The parent's weights in training, with their optimizer and teacher. Every worker makes the same calls."""

    def __init__(
        self,
        parent: Path,
        config: DistillConfig,
        *,
        num_steps: int,
        seed: int,
        rank: int,
        num_workers: int,
        new_adapter: bool = False,
    ) -> None:
        """Load `parent`; `new_adapter` trains a new adapter over its whole weights and does not continue its own."""
        self._config = config
        self._rank, self._num_workers = rank, num_workers
        self._num_steps = num_steps
        self.device = (
            torch.device("cuda", torch.cuda.current_device()) if config.workers.use_gpu else torch.device("cpu")
        )
        self.base = parent if new_adapter else lora_adapter.base_of(parent, config.lora)
        """Directory of the weights beneath the adapter; the parent where all parameters are trained."""
        zero3 = config.workers.zero_stage == 3
        self.model: Any = load_packed(
            self.base,
            compute_dtype(config),
            kernels=config.workers.kernels if config.workers.use_gpu else "torch",
            zero3=deepspeed_config(config) if zero3 else None,
        )
        if config.lora.rank:
            lora_adapter.inject(self.model, config.lora, parent=parent, base=self.base, seed=seed)
        if config.workers.activation_checkpointing:
            checkpoint_activations(self.model, reentrant=zero3)
        self.trained = {
            # Tied weights under each of their names, because a checkpoint may have either.
            name: each
            for name, each in self.model.named_parameters(remove_duplicate=False)
            if each.requires_grad
        }
        self.engine = deepspeed_engine(PackedLM(self.model), config)
        self.teacher = Teacher(config.teacher, list(dict.fromkeys(self.trained.values())))
        if config.teacher.kind == "ema" and not new_adapter:
            restore_teacher(self.teacher, self.trained, parent)
        self.progress = LearnerProgress()

    @property
    def has_adapter(self) -> bool:
        return self._config.lora.rank > 0

    @property
    def is_sharded(self) -> bool:
        """Whether this worker holds only a part of the optimizer's state, or of more."""
        return self._config.workers.zero_stage > 0

    def policy(self, base: BaseScores) -> StepPolicy:
        """The policy as `run_step` uses it."""
        live = self._config.teacher.kind == "live"
        return StepPolicy(
            run=self.engine,
            backward=self._backward,
            teacher=self.teacher.weights,
            total=self._total,
            baselined=self._config.teacher.scores_prompt,
            own_head=not live and not self._config.lora.rank,
            base_logprobs=base.logprobs,
            base_view=base.view,
            device=self.device,
        )

    def scores(self, examples: Sequence[Example], *, hindsight: bool) -> list[list[float]]:
        """log p of each example's scored tokens under the current weights, nats; all examples on every rank."""
        found: dict[str, list[float]] = {}
        for micro_batch in micro_batches(examples, self._config.workers.max_tokens_per_micro_batch):
            context = rows(micro_batch, HINDSIGHT if hindsight else PROMPT, device=self.device)
            with torch.no_grad():
                logp_N = self.engine(context, scores_of(context, self._config.workers.logits_mib))
            parts = logp_N.split([item.num_scored for item in micro_batch])
            found |= {item.interaction_id: part.tolist() for item, part in zip(micro_batch, parts, strict=True)}
        return [found[item.interaction_id] for item in examples]

    def step(self, batch: Sequence[Example], base: BaseScores) -> tuple[StepMetrics, StepSums]:
        """One optimizer step. Raises LearnerError, on every worker, where loss or gradient is not finite."""
        number, config = self.progress.step + 1, self._config
        own_share = shard(
            batch,
            rank=self._rank,
            num_workers=self._num_workers,
            max_tokens=config.workers.max_tokens_per_micro_batch,
        )
        sums = run_step(own_share, self.policy(base), config, baseline=self.progress.baseline)
        rate = learning_rate(number, self._num_steps, config)
        gradient_norm = self._apply(rate)
        if not math.isfinite(gradient_norm):
            raise LearnerError(f"step {number}: the gradient's norm is {gradient_norm}")
        self.teacher.follow()
        self.progress.step = number
        self.progress.baseline += _BASELINE_RATE * (sums.mean_advantage - self.progress.baseline)
        metrics = StepMetrics(
            step=number,
            loss=sums.loss,
            mean_advantage=sums.mean_advantage,
            abs_advantage=sums.abs_advantage,
            gradient_norm=gradient_norm,
            num_sequences=sums.num_sequences,
            num_tokens=sums.num_tokens,
            sampler_gap=sums.sampler_gap,
            learning_rate=rate,
            entropy=sums.entropy,
            kl_to_base=sums.kl_to_base,
            tis_capped=sums.tis_capped,
        )
        return metrics, sums

    def _backward(self, loss: Tensor, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages gradients over workers, but the workers' parts of the loss are to be summed.
        self.engine.backward(loss * self._num_workers)

    def _apply(self, rate: float) -> float:
        """Clip and update; returns the norm of the whole gradient before clipping."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        if self._config.workers.zero_stage:
            self.engine.step()
            return float(self.engine.get_global_grad_norm())
        # Without ZeRO every worker holds the whole reduced gradient, and DeepSpeed does not keep its norm.
        gradients = [parameter.grad for parameter in dict.fromkeys(self.trained.values()) if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        self.engine.step()
        return norm

    def _total(self, tensor: Tensor) -> Tensor:
        if self._num_workers > 1:
            dist.all_reduce(tensor)
        return tensor
