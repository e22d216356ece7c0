"""Log-probs of packed sequences, and the configurations that every step test runs under."""

from typing import Any

import torch
from torch import Tensor

from sdpo_ray.distill.data.example import PROMPT, Example
from sdpo_ray.distill.data.packing import MicroBatch, rows
from sdpo_ray.distill.model.lm_head import logprobs
from sdpo_ray.distill.model.packed_lm import PackedLM
from tests.support.training_batches import CPU, SIGNALS, learns

OBJECTIVES = {name: learns(**signal) for name, signal in SIGNALS.items()} | {"supervised": learns(objective="sft")}


def packed_scores(model: Any, part: MicroBatch) -> tuple[Tensor, ...]:
    """Log-probs of the scored tokens, one tensor for each sequence."""
    context = rows(part, PROMPT, device=CPU)
    with torch.no_grad():
        found = PackedLM(model)(
            context,
            lambda hidden, weight: logprobs(hidden, weight, context.target_N, context.temperature_N, logits_mib=1),
        )
    split: tuple[Tensor, ...] = found.split([len(item.response_ids) - item.first_scored for item in part])
    return split


def as_sampled(item: Example, scores: Tensor) -> tuple[float, ...]:
    """`scores` as sampler log-probs, with placeholders for the tokens before the first scored one."""
    return (-7.0,) * item.first_scored + tuple(scores.tolist())


def scores_of(model: Any, item: Example) -> Tensor:
    return packed_scores(model, (item,))[0]
