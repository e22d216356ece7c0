"""How far the policy has slid from the run's base: what the base says of the answers, and when to stop."""

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sdpo_ray.config import Distill
from sdpo_ray.distill.hindsight import Example
from sdpo_ray.distill.load import compute_dtype, load_packed
from sdpo_ray.distill.packing import micro_batches, rows
from sdpo_ray.distill.scorer import Scorer, scores_of
from sdpo_ray.distill.step import StepSums
from sdpo_ray.errors import LearnerError

_WINDOW = 4


def probes(examples: Sequence[Example], config: Distill) -> list[Example]:
    """The examples that the base scores: all where KL is penalised, else some, spread evenly."""
    if config.drift.kl_penalty or len(examples) <= config.drift.num_probes:
        return list(examples)
    stride = len(examples) / config.drift.num_probes
    return [examples[math.floor(index * stride)] for index in range(config.drift.num_probes)]


def base_logprobs(base: Path, examples: Sequence[Example], config: Distill, device: torch.device) -> dict[str, Tensor]:
    """log p_base(y_t | x) of the scored tokens of each example, on the CPU. The base is gone again afterwards."""
    scorer = Scorer(load_packed(base, compute_dtype(config))).to(device)
    found: dict[str, Tensor] = {}
    for micro_batch in micro_batches(examples, config.workers.max_tokens_per_micro_batch):
        context = rows(micro_batch, hindsight=False, device=device)
        with torch.no_grad():
            logp_N = scorer(context, scores_of(context, config.workers.logits_mib)).cpu()
        counts = [len(item.response_ids) - item.first_scored for item in micro_batch]
        for item, each in zip(micro_batch, logp_N.split(counts), strict=True):
            found[item.interaction_id] = each
    return found


class DriftStop:
    """Ends a run, with its reason, when the last steps together are further from the base than allowed."""

    def __init__(self, config: Distill) -> None:
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
