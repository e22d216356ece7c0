"""Formulas of the loss: advantages, bounds, importance weights, KL, token weights. Tensors in, tensors out.

    A_t  = log q(y_t | x, o, y_<t) - log p(y_t | x, y_<t)                     p student, q teacher; held constant
    L    = -sum_t w_t r_t (A_t - b - beta (log p - log p_base)) log p(y_t)    sampled_token
    L    = sum_t w_t r_t KL(p || q) + beta term                               topk_reverse_kl, full_kl

w_t distributes L over tokens, r_t = min(p / p_sampler, cap) corrects for an older sampler, b is a baseline. Source:
arXiv 2603.12273, section 3 and Lemma B.1; tails as in its authors' later branch. For a fixed o both have the same
expected gradient; where o depends on y, as with real users, they differ and may have opposite signs.

N scored tokens of a micro-batch, C of a chunk, B sequences, V vocabulary, K = top_k.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sdpo_ray.config.signal import SignalConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """What is known of the scored tokens before the student scores them. NaN is an unknown log-prob.

    Made by `step`; read by `sdpo_loss` and `distill.signals`.
    """

    weight_N: Tensor
    """w_t, in fp32."""
    row_N: Tensor
    sampler_logp_N: Tensor
    base_logp_N: Tensor

    def chunk(self, part: slice) -> "LossTerms":
        """The terms of a slice of N."""
        return LossTerms(**{each.name: getattr(self, each.name)[part] for each in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGradient:
    """Gradient of the sampled estimator, and its factors. Made by `policy_gradient`; read by `sdpo_loss`."""

    coefficient_N: Tensor
    """d L / d log p(y_t)."""
    advantage_N: Tensor
    """Bounded, before the baseline."""
    ratio_N: Tensor
    """r_t."""


def policy_gradient(
    logp_N: Tensor,
    advantage_N: Tensor,
    terms: LossTerms,
    signal: SignalConfig,
    *,
    kl_penalty: float = 0.0,
    baseline: Tensor | float = 0.0,
) -> PolicyGradient:
    """The sampled estimator for detached student log-probs and advantages that are already bounded."""
    centred_N = advantage_N - baseline
    if signal.baseline == "seq_mean":
        centred_N = centred_N - row_means(centred_N, terms.row_N)
    ratio_N = importance(logp_N, terms.sampler_logp_N, signal.tis_cap)
    pull_N = base_kl_term(logp_N, terms.base_logp_N, kl_penalty)
    return PolicyGradient(
        coefficient_N=-terms.weight_N * ratio_N * (centred_N - pull_N), advantage_N=advantage_N, ratio_N=ratio_N
    )


def advantages(teacher_logp_N: Tensor, reference_logp_N: Tensor, signal: SignalConfig) -> Tensor:
    """Bounded A_t in nats: the teacher's log-probs under hindsight over a reference's, both detached."""
    return bounded(teacher_logp_N - reference_logp_N, signal)


def base_kl_term(logp_N: Tensor, base_logp_N: Tensor, kl_penalty: float) -> Tensor:
    """beta (log p - log p_base): the factor of the gradient of beta KL(p || p_base); 0 where p_base is unknown."""
    if not kl_penalty:
        return torch.zeros_like(logp_N)
    return kl_penalty * torch.nan_to_num(logp_N - base_logp_N, nan=0.0)


def bounded(advantage_N: Tensor, signal: SignalConfig) -> Tensor:
    """log(a e^A + 1 - a) with a = `log_mix`, which is at least log(1 - a), then clamped to [-clip, clip]."""
    if signal.log_mix is not None:
        # A of 0 must stay exactly 0, so that an empty follow-up has no gradient.
        mixed_N = torch.logaddexp(
            advantage_N + math.log(signal.log_mix), torch.full_like(advantage_N, math.log1p(-signal.log_mix))
        )
        advantage_N = torch.where(advantage_N == 0, advantage_N, mixed_N)
    return advantage_N if signal.clip is None else advantage_N.clamp(-signal.clip, signal.clip)


def importance(logp_N: Tensor, sampler_logp_N: Tensor, cap: float | None) -> Tensor:
    """Truncated importance weights min(p / p_sampler, cap), without gradient; 1 where the sampler is unknown."""
    if cap is None:
        return torch.ones_like(logp_N)
    return torch.nan_to_num((logp_N - sampler_logp_N).detach(), nan=0.0).exp().clamp(max=cap)


def row_means(value_N: Tensor, row_N: Tensor) -> Tensor:
    """Each token's mean over its own sequence, [N]."""
    if not len(row_N):
        return value_N
    num_rows = int(row_N[-1]) + 1
    counts_B = torch.bincount(row_N, minlength=num_rows).clamp(min=1)
    return (value_N.new_zeros(num_rows).index_add_(0, row_N, value_N) / counts_B)[row_N]


def target_logprobs(
    student_CV: Tensor, teacher_CV: Tensor, reference_CV: Tensor | None, log_mix: float | None
) -> Tensor:
    """log q over the vocabulary, [C, V], without gradient, from logits.

    With a reference, q is the student times teacher over reference, normalised, which equals the student where
    hindsight changes nothing. With `log_mix` it is mixed with the student, which bounds log q - log p as `bounded`
    does.
    """
    student_CV = student_CV.detach()
    if reference_CV is not None:
        teacher_CV = student_CV + (teacher_CV - reference_CV)
    log_q_CV = normalized(teacher_CV)
    if log_mix is None:
        return log_q_CV
    log_p_CV = normalized(student_CV)
    mixed_CV = torch.logaddexp(log_q_CV + math.log(log_mix), log_p_CV + math.log1p(-log_mix))
    return torch.where(log_q_CV == log_p_CV, log_q_CV, mixed_CV)


def reverse_kl(logits_CV: Tensor, log_q_CV: Tensor, top_k: int | None) -> Tensor:
    """KL(p || q) of each token, [C]: over the vocabulary, or over the student's top K and one bucket for the rest.

    The K tokens are chosen without gradient. With the bucket it is a lower bound that grows with K.
    """
    if top_k is None or top_k >= logits_CV.shape[-1]:
        return _kl(normalized(logits_CV), log_q_CV)
    top_CK = logits_CV.detach().topk(top_k, dim=-1).indices
    log_p_CK = logits_CV.gather(-1, top_CK) - logits_CV.logsumexp(-1, keepdim=True)
    return _kl(_with_tail(log_p_CK), _with_tail(log_q_CV.gather(-1, top_CK)))


def normalized(logits_CV: Tensor) -> Tensor:
    """log softmax by the same sum as the scores: `log_softmax` differs in the last bit, and A = 0 must stay 0."""
    return logits_CV - logits_CV.logsumexp(-1, keepdim=True)


def token_weights(
    counts: Sequence[int], row_weights: Sequence[float], kind: str, sequences: int, tokens: int
) -> Tensor:
    """w_t of every scored token, [N] in fp32.

    `counts` are the scored tokens of each sequence; `sequences` and `tokens` are totals over the whole batch.
    `row_weights` scale sequences without changing the divisor.
    """
    shares: list[float] = []
    for count, weight in zip(counts, row_weights, strict=True):
        divisor = {"seq_mean_token_mean": sequences * count, "token_mean": tokens, "token_sum": sequences}[kind]
        shares += [weight / divisor] * count if count else []
    return torch.tensor(shares, dtype=torch.float32)


def finite_rows(value: Tensor, row_N: Tensor, num_rows: int) -> Tensor:
    """Which rows have finite values only, [B] of bool; the others must not enter a step. `value` is [N] or [N, D]."""
    bad = ~value.isfinite()
    bad_N = bad if bad.ndim == 1 else bad.any(-1)
    return torch.zeros(num_rows, dtype=torch.long, device=value.device).index_add_(0, row_N, bad_N.long()) == 0


def _kl(log_p_CK: Tensor, log_q_CK: Tensor) -> Tensor:
    """sum p (log p - log q), with the gradient sum p (log p - log q) d log p.

    The remaining term sum p d log p is 0; autograd would compute it as rounding noise where p and q are equal.
    """
    parts_CK = (log_p_CK.exp() * (log_p_CK - log_q_CK)).detach()
    return (parts_CK * (1 + log_p_CK - log_p_CK.detach())).sum(-1)


def _with_tail(log_CK: Tensor) -> Tensor:
    """Append a column: the log of the remaining probability, which fp32 cannot tell from 0 below 1e-7."""
    kept_C = log_CK.logsumexp(-1, keepdim=True).clamp(max=-1e-7)
    return torch.cat([log_CK, (-kept_C.expm1()).log()], dim=-1)
