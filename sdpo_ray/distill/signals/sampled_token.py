"""SDPO's own estimator: the advantage of the sampled token, with its baselines.

    A_t = log q(y_t | x, o, y_<t) - log p(y_t | x, y_<t)                    held constant
    L   = -sum_t w_t r_t (bound(A_t) - b) log p(y_t | x, y_<t)

Source: arXiv 2603.12273, section 3. Baselines b: `none`; `seq_mean`, the mean of A over the sequence; `ema_scalar`, a
moving average of the batches' mean A; `token_kl`, -KL_t(p || q), which gives each position mean zero.
"""

from dataclasses import dataclass

from torch import Tensor

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.contexts import HINDSIGHT_CONTEXT
from sdpo_ray.distill.data.example import HINDSIGHT, PROMPT
from sdpo_ray.distill.loss.advantages import advantages, reverse_kl
from sdpo_ray.distill.loss.sdpo_loss import SDPOLoss
from sdpo_ray.distill.model.lm_head import Gradient, logprobs
from sdpo_ray.distill.signals.reverse_kl import chunk_tensors, target_of

_SCORED = 2
"""The chunk's logits and log-sum-exp's own copy."""


@dataclass(frozen=True)
class SampledToken:
    """`signal.estimator = "sampled_token"`."""

    config: DistillConfig
    contexts = (HINDSIGHT_CONTEXT,)

    @property
    def compares_distributions(self) -> bool:
        return self.config.signal.baseline == "token_kl"

    @property
    def num_chunk_tensors(self) -> int:
        return chunk_tensors(self.config) if self.compares_distributions else _SCORED

    def teacher_contexts(self, *, scores_prompt: bool) -> tuple[str, ...]:
        return (HINDSIGHT, PROMPT) if scores_prompt else (HINDSIGHT,)

    def gradient(self, student: SDPOLoss, hidden_ND: Tensor, weight_VD: Tensor) -> Gradient:
        if self.compares_distributions:
            return _with_kl_baseline(student, weight_VD)
        if self.config.signal.baseline == "seq_mean":
            return _with_sequence_mean(student, hidden_ND, weight_VD)
        return _with_constant(student, student.baseline if self.config.signal.baseline == "ema_scalar" else 0.0)


def _with_constant(student: SDPOLoss, baseline: float) -> Gradient:
    def gradient(logits_CV: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        logp_C, total_C1 = student.score(logits_CV, part)
        coefficient_C = student.policy_gradient(logp_C, _advantages(student, logp_C, part), part, baseline=baseline)
        return student.weighted_logprobs(logits_CV, total_C1, logp_C, coefficient_C, part)

    return gradient


def _with_sequence_mean(student: SDPOLoss, hidden_ND: Tensor, weight_VD: Tensor) -> Gradient:
    """The mean is known only when the last token is scored, so the logits are computed twice."""
    context, every = student.context, slice(None)
    logp_N = logprobs(
        hidden_ND,
        weight_VD,
        context.target_N,
        context.temperature_N,
        logits_mib=student.config.workers.logits_mib,
    )
    coefficient_N = student.policy_gradient(logp_N, _advantages(student, logp_N, every), every)

    def gradient(logits_CV: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        logp_C, total_C1 = student.score(logits_CV, part)
        return student.weighted_logprobs(logits_CV, total_C1, logp_C, coefficient_N[part], part)

    return gradient


def _with_kl_baseline(student: SDPOLoss, weight_VD: Tensor) -> Gradient:
    def gradient(logits_CV: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        log_q_CV = target_of(student, weight_VD, logits_CV, part)
        log_q_C = log_q_CV.gather(-1, student.context.target_N[part, None])[:, 0]
        kl_C = reverse_kl(logits_CV, log_q_CV, None)
        logp_C, total_C1 = student.score(logits_CV, part)
        coefficient_C = student.policy_gradient(logp_C, log_q_C - logp_C, part, baseline=-kl_C)
        return student.weighted_logprobs(logits_CV, total_C1, logp_C, coefficient_C, part)

    return gradient


def _advantages(student: SDPOLoss, logp_N: Tensor, part: slice) -> Tensor:
    """Bounded A; the teacher's own score of x takes the student's place where the teacher scored it."""
    scores = student.teacher.by_context
    reference_N = scores[PROMPT][part] if PROMPT in scores else logp_N
    return advantages(scores[HINDSIGHT][part], reference_N, student.config.signal)
