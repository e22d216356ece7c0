"""How far the policy has drifted from the run's base: the base's scores of the responses, and the stop rule."""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.example import PROMPT, Example
from sdpo_ray.distill.data.packing import PackedRows, micro_batches, rows
from sdpo_ray.distill.loss.kl_monitor import BaseView
from sdpo_ray.distill.loss.step import StepSums
from sdpo_ray.distill.model.load import compute_dtype, load_packed
from sdpo_ray.distill.model.packed_lm import PackedLM, Work, scores_of
from sdpo_ray.errors import LearnerError

_WINDOW = 4
"""Steps whose mean the limits apply to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseScores:
    """The run's base policy on an update's responses. Made by `train.train_loop`; read by `train.learner`."""

    view: BaseView
    logprobs: dict[str, Tensor]
    """log p_base of the scored tokens by interaction, where KL to the base is penalised; else empty."""


def probes(examples: Sequence[Example], config: DistillConfig) -> list[Example]:
    """The examples on which KL to the base is watched, `drift.num_probes` of them spread evenly."""
    if len(examples) <= config.drift.num_probes:
        return list(examples)
    stride = len(examples) / config.drift.num_probes
    return [examples[math.floor(index * stride)] for index in range(config.drift.num_probes)]


def load_base(base: Path, config: DistillConfig, device: torch.device) -> PackedLM:
    """The run's base policy on `device`, in the precision that the update computes in."""
    scorer: PackedLM = PackedLM(load_packed(base, compute_dtype(config))).to(device)
    return scorer


def view_of(base: PackedLM, watched: Sequence[Example], config: DistillConfig, *, same_head: bool) -> BaseView:
    """The base's hidden states of the watched responses.

    `same_head`: the policy's output weights are the base's and are not trained.
    """
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
    """The result of `work` at each example's scored positions in the context x, on the CPU."""
    device = base.head.weight.device
    found: dict[str, Tensor] = {}
    for micro_batch in micro_batches(examples, config.workers.max_tokens_per_micro_batch):
        context = rows(micro_batch, PROMPT, device=device)
        with torch.no_grad():
            result = base(context, work(context)).cpu()
        parts = result.split([item.num_scored for item in micro_batch])
        found |= {item.interaction_id: part for item, part in zip(micro_batch, parts, strict=True)}
    return found


class DriftStop:
    """Stops an update whose last steps are together further from the base than `[distill.drift]` allows."""

    def __init__(self, config: DistillConfig) -> None:
        self._limits = config.drift
        self._recent: deque[StepSums] = deque(maxlen=_WINDOW)

    def check(self, step: int, sums: StepSums) -> None:
        """Raise LearnerError with the numbers if a limit is passed, on every worker alike, since `sums` are global."""
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
                f"drift stop at step {step}: -log p of the responses is {entropy:.3f} nats a token over the last "
                f"{len(self._recent)} steps, less than drift.min_entropy = {self._limits.min_entropy:g}"
            )


def _mean(parts: Sequence[tuple[float, int]]) -> float | None:
    total = sum(n for _, n in parts)
    return sum(value * n for value, n in parts) / total if total else None
