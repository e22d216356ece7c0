"""One SDPO step over a batch that is spread over workers: two forwards and one backward an example.

The teacher scores every micro-batch before the first backward, so all of them meet the same weights and the
number of sequences that count is known when the first gradient is made.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor

from sdpo_ray.distill.objective import advantages, finite_rows, sampled_loss, token_weights
from sdpo_ray.distill.packing import MicroBatch, Rows, rows
from sdpo_ray.errors import LearnerError


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSums:
    """One step summed over all workers."""

    loss: float
    mean_advantage: float
    abs_advantage: float
    sampler_gap: float
    num_sequences: int
    num_tokens: int
    num_dropped: int
    """Sequences whose log-probs under hindsight were not finite."""


def run_step(
    micro_batches: Sequence[MicroBatch],
    *,
    score: Callable[[Rows], Tensor],
    backward: Callable[[Tensor, bool], None],
    total: Callable[[Tensor], Tensor],
    device: torch.device | None = None,
) -> StepSums:
    """Leave the gradient of L of the whole batch behind. Every worker calls it with as many micro-batches.

    `score` gives log-probs [N] of `Rows`; `backward(loss, last)` adds the gradient of this worker's part of L;
    `total` adds a tensor up over workers. Raises LearnerError, on every worker, where nothing is finite.
    """
    taught = [_teach(micro_batch, score, device) for micro_batch in micro_batches]
    num_kept = sum(len(kept) for kept, _ in taught)
    num_dropped = sum(map(len, micro_batches)) - num_kept
    num_sequences, dropped = total(torch.tensor([num_kept, num_dropped], dtype=torch.float64, device=device)).tolist()
    if not num_sequences:
        raise LearnerError(f"no sequence has finite log-probs under hindsight ({dropped:.0f} dropped)")
    sums = torch.zeros(6, dtype=torch.float64, device=device)
    for index, (kept, hindsight_logp_N) in enumerate(taught):
        logp_N = score(rows(kept, hindsight=False, device=device))
        advantage_N = advantages(hindsight_logp_N, logp_N)
        weight_N = token_weights([len(item.response_ids) for item in kept], int(num_sequences)).to(logp_N.device)
        loss = sampled_loss(logp_N, advantage_N, weight_N)
        backward(loss, index == len(taught) - 1)
        gap_N = _sampler_gaps(kept, logp_N.detach())
        parts = (loss.detach(), advantage_N.sum(), advantage_N.abs().sum(), gap_N.sum())
        sums += torch.stack([part.double() for part in parts] + [sums.new_tensor(n) for n in (len(logp_N), len(gap_N))])
    loss_sum, advantage, abs_advantage, gap, num_tokens, num_gaps = total(sums).tolist()
    if not math.isfinite(loss_sum):
        raise LearnerError(f"the loss is {loss_sum}: the policy cannot score what it answered")
    return StepSums(
        loss=loss_sum,
        mean_advantage=advantage / num_tokens,
        abs_advantage=abs_advantage / num_tokens,
        sampler_gap=gap / num_gaps if num_gaps else 0.0,
        num_sequences=int(num_sequences),
        num_tokens=int(num_tokens),
        num_dropped=int(dropped),
    )


def _teach(
    micro_batch: MicroBatch, score: Callable[[Rows], Tensor], device: torch.device | None
) -> tuple[MicroBatch, Tensor]:
    """The sequences whose log-probs under hindsight are finite, and those log-probs [N]."""
    batch = rows(micro_batch, hindsight=True, device=device)
    with torch.no_grad():
        logp_N = score(batch)
    finite_B = finite_rows(logp_N, batch.row_N, len(micro_batch))
    return tuple(compress(micro_batch, finite_B.tolist())), logp_N[finite_B[batch.row_N]]


def _sampler_gaps(kept: MicroBatch, logp_N: Tensor) -> Tensor:
    """|log p(learner) - log p(sampler)| of the tokens whose sampler's log-probs mean the same."""
    recorded = [logprob for item in kept for logprob in item.sampler_logprobs]
    comparable = [item.comparable for item in kept for _ in item.response_ids]
    gap_N = (logp_N - torch.tensor(recorded, dtype=logp_N.dtype, device=logp_N.device)).abs()
    return gap_N[torch.tensor(comparable, dtype=torch.bool, device=logp_N.device)]
