"""How far the policy has slid from the run's base: what the base says of the answers, and when to stop."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.examples import Example
from sdpo_ray.distill.data.packing import PackedRows, micro_batches, rows
from sdpo_ray.distill.loss.kl_monitor import BaseView
from sdpo_ray.distill.loss.step import StepSums
from sdpo_ray.distill.model.load import compute_dtype, load_packed
from sdpo_ray.distill.model.packed_lm import PackedLM, Work, scores_of
from sdpo_ray.errors import LearnerError

_WINDOW = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseScores:
    """What the run's base says of an update's answers."""

    view: BaseView
    logprobs: dict[str, Tensor]
    """Of all answers where KL to the base is penalised; else none."""


def probes(examples: Sequence[Example], config: DistillConfig) -> list[Example]:
    """The examples on which KL to the base is watched, spread evenly."""
    if len(examples) <= config.drift.num_probes:
        return list(examples)
    stride = len(examples) / config.drift.num_probes
    return [examples[math.floor(index * stride)] for index in range(config.drift.num_probes)]


def load_base(base: Path, config: DistillConfig, device: torch.device) -> PackedLM:
    scorer: PackedLM = PackedLM(load_packed(base, compute_dtype(config))).to(device)
    return scorer


def view_of(base: PackedLM, watched: Sequence[Example], config: DistillConfig, *, same_head: bool) -> BaseView:
    """The base's hidden states of the watched answers; `same_head` where the policy's output weights are the base's."""
    return BaseView(
        hidden=_each(base, watched, config, lambda context: lambda hidden_ND, weight_VD: hidden_ND),
        head_VD=None if same_head else base.head.weight.detach(),
    )


def base_logprobs(base: PackedLM, examples: Sequence[Example], config: DistillConfig) -> dict[str, Tensor]:
    """log p_base(y_t | x) of the scored tokens of each example, on the CPU."""
    return _each(base, examples, config, lambda context: scores_of(context, config.workers.logits_mib))


def _each(
    base: PackedLM, examples: Sequence[Example], config: DistillConfig, work: Callable[[PackedRows], Work]
) -> dict[str, Tensor]:
    """What `work` makes of each example's scored positions, without hindsight, on the CPU."""
    device = base.head.weight.device
    found: dict[str, Tensor] = {}
    for micro_batch in micro_batches(examples, config.workers.max_tokens_per_micro_batch):
        context = rows(micro_batch, hindsight=False, device=device)
        with torch.no_grad():
            made = base(context, work(context)).cpu()
        parts = made.split([item.num_scored for item in micro_batch])
        found |= {item.interaction_id: each for item, each in zip(micro_batch, parts, strict=True)}
    return found


class DriftStop:
    """Ends a run, with its reason, when the last steps together are further from the base than allowed."""

    def __init__(self, config: DistillConfig) -> None:
        self._limits = config.drift
        self._recent: deque[StepSums] = deque(maxlen=_WINDOW)

    def check(self, step: int, sums: StepSums) -> None:
        """Raises LearnerError on every worker alike, for `sums` are those of all of them."""
        self._recent.append(sums)
        kl = _mean([(each.kl_to_base, each.num_base_tokens) for each in self._recent])
        entropy = _mean([(each.entropy, each.num_tokens) for each in self._recent])
        if self._limits.max_kl_to_base is not None and kl is not None and kl > self._limits.max_kl_to_base:
            raise LearnerError(
                f"drift stop at step {step}: KL to the base is {kl:.3f} nats a token over the last "
                f"{len(self._recent)} steps, more than drift.max_kl_to_base = {self._limits.max_kl_to_base:g}"
            )
        if self._limits.min_entropy is not None and entropy is not None and entropy < self._limits.min_entropy:
            raise LearnerError(
                f"drift stop at step {step}: -log p of the answers is {entropy:.3f} nats a token over the last "
                f"{len(self._recent)} steps, less than drift.min_entropy = {self._limits.min_entropy:g}"
            )


def _mean(parts: Sequence[tuple[float, int]]) -> float | None:
    total = sum(n for _, n in parts)
    return sum(value * n for value, n in parts) / total if total else None
