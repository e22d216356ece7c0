"""What each token of an answer is moved by: estimators, baselines, bounds and weights; tensors in, tensors out.

    A_t  = log q(y_t | x, o, y_<t) - log p(y_t | x, y_<t)                     p student, q teacher; held constant
    L    = -sum_t w_t r_t (A_t - b - beta (log p - log p_base)) log p(y_t)    sampled_token
    L    = sum_t w_t r_t KL(p || q) + beta term                               topk_reverse_kl, full_kl

w_t shares L out over tokens, r_t = min(p / p_sampler, cap) corrects for an older sampler, b is a baseline. Source:
arXiv 2603.12273, section 3 and Lemma B.1; tails as in its authors' later branch. For a fixed o both have the same
expected gradient; where o answers y, as with real users, they differ and may have opposite signs.

N scored tokens of a micro-batch, C of a chunk, B sequences, V vocabulary, K = top_k.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sdpo_ray.config.distill import SignalConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """What is known of the scored tokens before the student has scored them. NaN is an unknown log-prob."""

    weight_N: Tensor
    """w_t, in fp32."""
    row_N: Tensor
    sampler_logp_N: Tensor
    base_logp_N: Tensor
    teacher_logp_N: Tensor
    """log q(y_t | x, o)."""
    reference_logp_N: Tensor
    """log q(y_t | x), which takes the student's place in A; NaN where that is the student itself."""

    def chunk(self, part: slice) -> "LossTerms":
        return LossTerms(**{each.name: getattr(self, each.name)[part] for each in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGradient:
    """How the sampled estimator moves each token: d L / d log p(y_t), and what it was made of."""

    coefficient_N: Tensor
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
    """The sampled estimator for detached student log-probs and advantages that are bounded already."""
    centred_N = advantage_N - baseline
    if signal.baseline == "seq_mean":
        centred_N = centred_N - row_means(centred_N, terms.row_N)
    ratio_N = importance(logp_N, terms.sampler_logp_N, signal.tis_cap)
    pull_N = base_kl_term(logp_N, terms.base_logp_N, kl_penalty)
    return PolicyGradient(
        coefficient_N=-terms.weight_N * ratio_N * (centred_N - pull_N), advantage_N=advantage_N, ratio_N=ratio_N
    )


def advantages(logp_N: Tensor, terms: LossTerms, signal: SignalConfig) -> Tensor:
    """Bounded A_t in nats from the teacher's scores of the sampled tokens, for detached student log-probs."""
    reference_N = torch.where(terms.reference_logp_N.isnan(), logp_N, terms.reference_logp_N)
    return bounded(terms.teacher_logp_N - reference_N, signal)


def base_kl_term(logp_N: Tensor, base_logp_N: Tensor, kl_penalty: float) -> Tensor:
    """beta (log p - log p_base), the gradient's factor of the penalty beta KL(p || p_base); 0 where it is unknown."""
    if not kl_penalty:
        return torch.zeros_like(logp_N)
    return kl_penalty * torch.nan_to_num(logp_N - base_logp_N, nan=0.0)


def bounded(advantage_N: Tensor, signal: SignalConfig) -> Tensor:
    """log(a e^A + 1 - a), which is at least log(1 - a), then clamped to [-clip, clip]."""
    if signal.log_mix is not None:
        # A of 0 must stay exactly 0: an empty follow-up teaches nothing.
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

    With a reference, q is the student times teacher over reference, normalised: no hindsight, no difference. With
    `log_mix` it is mixed with the student, which bounds log q - log p as `bounded` does.
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
    """KL(p || q) of each token, [C]: over the vocabulary, or over the student's top K and one bucket for the others.

    The K tokens are chosen without gradient. With a bucket it is a lower bound that grows with K.
    """
    if top_k is None or top_k >= logits_CV.shape[-1]:
        return _kl(normalized(logits_CV), log_q_CV)
    top_CK = logits_CV.detach().topk(top_k, dim=-1).indices
    log_p_CK = logits_CV.gather(-1, top_CK) - logits_CV.logsumexp(-1, keepdim=True)
    return _kl(_with_tail(log_p_CK), _with_tail(log_q_CV.gather(-1, top_CK)))


def normalized(logits_CV: Tensor) -> Tensor:
    """log softmax by the sum that scores use too: `log_softmax` differs in the last bit, and 0 has to stay 0."""
    return logits_CV - logits_CV.logsumexp(-1, keepdim=True)


def token_weights(
    counts: Sequence[int], row_weights: Sequence[float], kind: str, sequences: int, tokens: int
) -> Tensor:
    """w_t of every scored token, [N] in fp32: `counts` a sequence, of `sequences` and `tokens` in the whole batch.

    Staleness weighs sequences without changing what they are divided by.
    """
    shares: list[float] = []
    for count, weight in zip(counts, row_weights, strict=True):
        divisor = {"seq_mean_token_mean": sequences * count, "token_mean": tokens, "token_sum": sequences}[kind]
        shares += [weight / divisor] * count if count else []
    return torch.tensor(shares, dtype=torch.float32)


def finite_rows(value: Tensor, row_N: Tensor, num_rows: int) -> Tensor:
    """Which rows have finite values only, [B] of bool: the others must not enter a step. Values are [N] or [N, D]."""
    bad = ~value.isfinite()
    bad_N = bad if bad.ndim == 1 else bad.any(-1)
    return torch.zeros(num_rows, dtype=torch.long, device=value.device).index_add_(0, row_N, bad_N.long()) == 0


def _kl(log_p_CK: Tensor, log_q_CK: Tensor) -> Tensor:
    """sum p (log p - log q), whose gradient is sum p (log p - log q) d log p, for sum p d log p is 0.

    Written out, that term is rounding noise instead of 0 where p and q are the same.
    """
    parts_CK = (log_p_CK.exp() * (log_p_CK - log_q_CK)).detach()
    return (parts_CK * (1 + log_p_CK - log_p_CK.detach())).sum(-1)


def _with_tail(log_CK: Tensor) -> Tensor:
    """One more column: the log of the probability that is left, which fp32 cannot tell from 0 under 1e-7."""
    kept_C = log_CK.logsumexp(-1, keepdim=True).clamp(max=-1e-7)
    return torch.cat([log_CK, (-kept_C.expm1()).log()], dim=-1)
