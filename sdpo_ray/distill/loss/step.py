"""One step over a batch that is spread over workers: two forwards and one backward an example.

The teacher scores every micro-batch before the first backward, so all of them meet the same weights, and the number
of sequences and tokens that count is known when the first gradient is made.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.packing import MicroBatch, PackedRows, rows
from sdpo_ray.distill.loss.advantages import LossTerms, finite_rows, token_weights
from sdpo_ray.distill.loss.kl_monitor import BaseView, KLMonitor
from sdpo_ray.distill.loss.sdpo_loss import SDPOLoss, TeacherScores
from sdpo_ray.distill.model.packed_lm import Work, scores_of
from sdpo_ray.errors import LearnerError


def _plain_backward(loss: Tensor, last: bool) -> None:
    loss.backward()


def _one_worker(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPolicy:
    """What a step needs of the policy that learns; by default one worker's, its own teacher, without DeepSpeed."""

    run: Callable[[PackedRows, Work], Any]
    """A forward pass of the body, then the work."""
    device: torch.device
    backward: Callable[[Tensor, bool], None] = _plain_backward
    """Add the gradient of this worker's part of the loss; the last one of a step is marked."""
    teacher: Callable[[], AbstractContextManager[None]] = nullcontext
    """While it is open, `run` uses the teacher's weights."""
    total: Callable[[Tensor], Tensor] = _one_worker
    """A tensor added up over workers."""
    baselined: bool = False
    """The teacher is not the student: its own score without hindsight is A's reference."""
    own_head: bool = False
    """The teacher has other output weights than the student."""
    base_logprobs: Mapping[str, Tensor] = field(default_factory=dict)
    """log p_base(y_t | x) of the scored tokens, by interaction, where KL to the base is penalised."""
    base_view: BaseView | None = None
    """What KL to the base is watched by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSums:
    """One step, over all workers; means are over scored tokens."""

    loss: float
    mean_advantage: float
    abs_advantage: float
    sampler_gap: float
    entropy: float
    kl_to_base: float
    num_base_tokens: int
    tis_capped: float
    num_sequences: int
    num_tokens: int
    num_dropped: int
    """Sequences whose log-probs under hindsight were not finite."""


def run_step(
    micro_batches: Sequence[MicroBatch], policy: StepPolicy, config: DistillConfig, *, baseline: float = 0.0
) -> StepSums:
    """Leave the gradient of L of the whole batch behind. Every worker calls it with as many micro-batches.

    Raises LearnerError, on every worker, where no sequence is left or the policy cannot score what it answered.
    """
    taught = score_with_teacher(micro_batches, policy, config)
    kept = [item for micro_batch, _ in taught for item in micro_batch]
    num_dropped = sum(map(len, micro_batches)) - len(kept)
    num_scored = sum(item.num_scored for item in kept)
    sequences, tokens, dropped = (
        int(n) for n in policy.total(_double([len(kept), num_scored, num_dropped], policy.device)).tolist()
    )
    if not sequences:
        raise LearnerError(f"no sequence has finite log-probs under hindsight ({dropped} dropped)")
    sums = torch.zeros(9, dtype=torch.float64, device=policy.device)
    for index, (micro_batch, lesson) in enumerate(taught):
        context = rows(micro_batch, hindsight=False, device=policy.device)
        terms = _terms(micro_batch, context, lesson, policy, config, sequences, tokens)
        watch = KLMonitor(policy.base_view, micro_batch, policy.device) if policy.base_view is not None else None
        student = SDPOLoss(context, terms, lesson, config, baseline=baseline, watch=watch)
        loss = policy.run(context, student.loss)
        policy.backward(loss, index == len(taught) - 1)
        sums += _sums(loss.detach(), student, terms, config, watch)
    loss, advantage, absolute, capped, surprise, gap, gaps, kl, kls = policy.total(sums).tolist()
    if not math.isfinite(loss):
        raise LearnerError(f"the loss is {loss}: the policy cannot score what it answered")
    per_token = 1 / max(tokens, 1)
    return StepSums(
        loss=loss,
        mean_advantage=advantage * per_token,
        abs_advantage=absolute * per_token,
        sampler_gap=gap / max(gaps, 1),
        entropy=surprise * per_token,
        kl_to_base=kl / max(kls, 1),
        num_base_tokens=int(kls),
        tis_capped=capped * per_token,
        num_sequences=sequences,
        num_tokens=tokens,
        num_dropped=dropped,
    )


def score_with_teacher(
    micro_batches: Sequence[MicroBatch], policy: StepPolicy, config: DistillConfig
) -> list[tuple[MicroBatch, TeacherScores]]:
    """Of each micro-batch the sequences whose scores under hindsight are finite, and what the teacher says of them."""
    if config.objective == "sft":
        return [(micro_batch, TeacherScores()) for micro_batch in micro_batches]
    with torch.no_grad(), policy.teacher():
        return [_teach(micro_batch, policy, config) for micro_batch in micro_batches]


def _teach(micro_batch: MicroBatch, policy: StepPolicy, config: DistillConfig) -> tuple[MicroBatch, TeacherScores]:
    context = rows(micro_batch, hindsight=True, device=policy.device)
    hindsight, weight_VD = policy.run(context, _kept(context, config))
    reference = None
    if policy.baselined:
        plain = rows(micro_batch, hindsight=False, device=policy.device)
        reference, _ = policy.run(plain, _kept(plain, config))
    finite_B = finite_rows(hindsight, context.row_N, len(micro_batch))
    if reference is not None:
        finite_B &= finite_rows(reference, context.row_N, len(micro_batch))
    stays_N = finite_B[context.row_N]
    lesson = TeacherScores(
        hindsight=hindsight[stays_N],
        reference=None if reference is None else reference[stays_N],
        weight_VD=weight_VD if policy.own_head and config.signal.compares_distributions else None,
    )
    return tuple(compress(micro_batch, finite_B.tolist())), lesson


def _kept(context: PackedRows, config: DistillConfig) -> Work:
    """What is kept of the teacher's pass: scores, or hidden states where distributions are compared; and its head."""
    score = scores_of(context, config.workers.logits_mib)

    def work(hidden_ND: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
        kept = hidden_ND if config.signal.compares_distributions else score(hidden_ND, weight_VD)
        # Detached, the head stays the teacher's when the student's weights are put back.
        return kept, weight_VD.detach()

    return work


def _terms(
    micro_batch: MicroBatch,
    context: PackedRows,
    lesson: TeacherScores,
    policy: StepPolicy,
    config: DistillConfig,
    sequences: int,
    tokens: int,
) -> LossTerms:
    counts = [item.num_scored for item in micro_batch]
    unknown_N = torch.full((sum(counts),), math.nan, dtype=torch.float32, device=policy.device)
    sampler = [
        logprob
        for item, count in zip(micro_batch, counts, strict=True)
        for logprob in item.sampler_logprobs[item.first_scored :] or (math.nan,) * count
    ]
    base = [
        policy.base_logprobs.get(item.interaction_id, unknown_N.new_full((count,), math.nan))
        for item, count in zip(micro_batch, counts, strict=True)
    ]
    scalar = lesson.hindsight is not None and lesson.hindsight.ndim == 1
    return LossTerms(
        weight_N=token_weights(
            counts, [item.weight for item in micro_batch], config.signal.normalize, sequences, tokens
        ).to(policy.device),
        row_N=context.row_N,
        sampler_logp_N=torch.tensor(sampler, dtype=torch.float32, device=policy.device),
        base_logp_N=torch.cat([each.to(policy.device) for each in base]) if base else unknown_N,
        teacher_logp_N=lesson.hindsight if scalar and lesson.hindsight is not None else unknown_N,
        reference_logp_N=lesson.reference if scalar and lesson.reference is not None else unknown_N,
    )


def _sums(loss: Tensor, student: SDPOLoss, terms: LossTerms, config: DistillConfig, watch: KLMonitor | None) -> Tensor:
    logp_N, advantage_N = student.logp_N, student.advantage_N
    known_N = ~terms.sampler_logp_N.isnan()
    parts = [
        loss,
        advantage_N.sum(),
        advantage_N.abs().sum(),
        (student.ratio_N >= (config.signal.tis_cap or math.inf)).sum(),
        -logp_N.sum(),
        (logp_N - terms.sampler_logp_N)[known_N].abs().sum(),
        known_N.sum(),
        loss.new_zeros(()) if watch is None else watch.kl,
        loss.new_tensor(0 if watch is None else watch.num_tokens),
    ]
    return torch.stack([part.double() for part in parts])


def _double(values: list[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)
