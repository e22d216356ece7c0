"""One optimizer step's gradient over a batch that is spread over workers: teacher forwards, then student and backward.

The teacher scores every micro-batch before the first backward pass. So all micro-batches meet the same weights, and the
number of sequences and tokens that count is known when the first gradient is computed.
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
from sdpo_ray.distill.data.example import PROMPT
from sdpo_ray.distill.data.packing import MicroBatch, PackedRows, rows
from sdpo_ray.distill.loss.advantages import LossTerms, finite_rows, token_weights
from sdpo_ray.distill.loss.kl_monitor import BaseView, KLMonitor
from sdpo_ray.distill.loss.sdpo_loss import SDPOLoss, TeacherScores
from sdpo_ray.distill.model.packed_lm import Work, scores_of
from sdpo_ray.distill.signals.protocol import Signal
from sdpo_ray.distill.signals.registry import signal_of
from sdpo_ray.errors import LearnerError


def _plain_backward(loss: Tensor, last: bool) -> None:
    loss.backward()


def _one_worker(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPolicy:
    """What a step needs of the policy. The defaults are one worker's policy, its own teacher, without DeepSpeed.

    Made by `train.learner`; read by `run_step`.
    """

    run: Callable[[PackedRows, Work], Any]
    """A forward pass of the body, then the work."""
    device: torch.device
    backward: Callable[[Tensor, bool], None] = _plain_backward
    """Adds the gradient of this worker's part of the loss; the flag marks the last one of a step."""
    teacher: Callable[[], AbstractContextManager[None]] = nullcontext
    """While the context is open, `run` uses the teacher's weights."""
    total: Callable[[Tensor], Tensor] = _one_worker
    """Sums a tensor over workers."""
    baselined: bool = False
    """The teacher is not the student, and its own score of x is A's reference."""
    own_head: bool = False
    """The teacher has other output weights than the student."""
    base_logprobs: Mapping[str, Tensor] = field(default_factory=dict)
    """log p_base(y_t | x) of the scored tokens, by interaction, where KL to the base is penalised."""
    base_view: BaseView | None = None
    """The base at the watched responses, for the KL monitor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSums:
    """One step over all workers; means are over scored tokens. Made by `run_step`; read by `train.learner`."""

    loss: float
    mean_advantage: float
    abs_advantage: float
    sampler_gap: float
    """Mean |log p - log p_sampler|, nats, over tokens with a known sampler log-prob."""
    entropy: float
    """Mean -log p(y), nats."""
    kl_to_base: float
    """Mean over the watched tokens, nats."""
    num_base_tokens: int
    """Watched tokens."""
    tis_capped: float
    """Share of tokens whose importance weight was capped."""
    num_sequences: int
    num_tokens: int
    num_dropped: int
    """Sequences dropped because the teacher's scores of them were not finite."""


def run_step(
    micro_batches: Sequence[MicroBatch], policy: StepPolicy, config: DistillConfig, *, baseline: float = 0.0
) -> StepSums:
    """Accumulate the gradient of L of the whole batch. Collective, with equally many micro-batches on every worker.

    `baseline` is the moving average of earlier batches' mean advantages, in nats. Raises LearnerError, on every worker,
    where no sequence is left or the student's loss is not finite.
    """
    signal = signal_of(config)
    scored = score_with_teacher(micro_batches, policy, config, signal)
    kept = [item for micro_batch, _ in scored for item in micro_batch]
    num_dropped = sum(map(len, micro_batches)) - len(kept)
    num_scored = sum(item.num_scored for item in kept)
    sequences, tokens, dropped = (
        int(n) for n in policy.total(_double([len(kept), num_scored, num_dropped], policy.device)).tolist()
    )
    if not sequences:
        raise LearnerError(f"no sequence has finite log-probs under hindsight ({dropped} dropped)")
    sums = torch.zeros(9, dtype=torch.float64, device=policy.device)
    for index, (micro_batch, teacher) in enumerate(scored):
        context = rows(micro_batch, PROMPT, device=policy.device)
        terms = _terms(micro_batch, context, policy, config, sequences, tokens)
        monitor = KLMonitor(policy.base_view, micro_batch, policy.device) if policy.base_view is not None else None
        student = SDPOLoss(context, terms, teacher, config, signal, baseline=baseline, monitor=monitor)
        loss = policy.run(context, student.loss)
        policy.backward(loss, index == len(scored) - 1)
        sums += _sums(loss.detach(), student, terms, config, monitor)
    loss, advantage, absolute, capped, surprise, gap, gaps, kl, kls = policy.total(sums).tolist()
    if not math.isfinite(loss):
        raise LearnerError(f"the loss is {loss}: the policy's log-probs of its own responses are not finite")
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
    micro_batches: Sequence[MicroBatch], policy: StepPolicy, config: DistillConfig, signal: Signal
) -> list[tuple[MicroBatch, TeacherScores]]:
    """The sequences of each micro-batch whose teacher scores are finite, with those scores."""
    names = signal.teacher_contexts(scores_prompt=policy.baselined)
    if not names:
        return [(micro_batch, TeacherScores()) for micro_batch in micro_batches]
    with torch.no_grad(), policy.teacher():
        return [_score(micro_batch, names, policy, config, signal) for micro_batch in micro_batches]


def _score(
    micro_batch: MicroBatch, names: Sequence[str], policy: StepPolicy, config: DistillConfig, signal: Signal
) -> tuple[MicroBatch, TeacherScores]:
    scores: dict[str, Tensor] = {}
    finite_B = torch.ones(len(micro_batch), dtype=torch.bool, device=policy.device)
    for name in names:
        context = rows(micro_batch, name, device=policy.device)
        scores[name], weight_VD = policy.run(context, _teacher_work(context, config, signal))
        finite_B &= finite_rows(scores[name], context.row_N, len(micro_batch))
    # Scored tokens and their rows are the same in every context.
    kept_N = finite_B[context.row_N]
    return tuple(compress(micro_batch, finite_B.tolist())), TeacherScores(
        by_context={name: score[kept_N] for name, score in scores.items()},
        weight_VD=weight_VD if policy.own_head and signal.compares_distributions else None,
    )


def _teacher_work(context: PackedRows, config: DistillConfig, signal: Signal) -> Work:
    """Work that returns log-probs [N], or hidden states [N, D] for distributions, and the teacher's output weights."""
    score = scores_of(context, config.workers.logits_mib)

    def work(hidden_ND: Tensor, weight_VD: Tensor) -> tuple[Tensor, Tensor]:
        kept = hidden_ND if signal.compares_distributions else score(hidden_ND, weight_VD)
        # Detached, the head stays the teacher's when the student's weights are put back.
        return kept, weight_VD.detach()

    return work


def _terms(
    micro_batch: MicroBatch,
    context: PackedRows,
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
    return LossTerms(
        weight_N=token_weights(
            counts, [item.weight for item in micro_batch], config.signal.normalize, sequences, tokens
        ).to(policy.device),
        row_N=context.row_N,
        sampler_logp_N=torch.tensor(sampler, dtype=torch.float32, device=policy.device),
        base_logp_N=torch.cat([each.to(policy.device) for each in base]) if base else unknown_N,
    )


def _sums(
    loss: Tensor, student: SDPOLoss, terms: LossTerms, config: DistillConfig, monitor: KLMonitor | None
) -> Tensor:
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
        loss.new_zeros(()) if monitor is None else monitor.kl,
        loss.new_tensor(0 if monitor is None else monitor.num_tokens),
    ]
    return torch.stack([part.double() for part in parts])


def _double(values: list[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device)
