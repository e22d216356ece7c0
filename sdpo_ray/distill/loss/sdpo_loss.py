"""The student's half of a step: logits of one chunk to loss and gradient, and a record of what was seen."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.packing import PackedRows
from sdpo_ray.distill.loss.advantages import (
    LossTerms,
    advantages,
    base_kl_term,
    importance,
    policy_gradient,
    reverse_kl,
    target_logprobs,
)
from sdpo_ray.distill.loss.kl_monitor import KLMonitor
from sdpo_ray.distill.model.lm_head import fused_loss, logits, logprobs, score_


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherScores:
    """What the teacher said: log-probs [N] of the scored tokens, or hidden states [N, D] with its output weights.

    `reference` is the same without hindsight; None where the student's own score is A's reference. SFT has no teacher.
    """

    hindsight: Tensor | None = None
    reference: Tensor | None = None
    weight_VD: Tensor | None = None
    """None where the teacher's output weights are the student's."""


class SDPOLoss:
    """One micro-batch. After `loss`, `logp_N`, `advantage_N` and `ratio_N` hold what the student scored, detached."""

    def __init__(
        self,
        context: PackedRows,
        terms: LossTerms,
        taught: TeacherScores,
        config: DistillConfig,
        *,
        baseline: float = 0.0,
        watch: KLMonitor | None = None,
    ) -> None:
        self._context = context
        self._terms = terms
        self._taught = taught
        self._config = config
        self._baseline = baseline
        self._watch = watch
        num_tokens = len(context.target_N)
        self.logp_N = torch.empty(num_tokens, device=context.target_N.device)
        self.advantage_N = torch.zeros_like(self.logp_N)
        self.ratio_N = torch.ones_like(self.logp_N)
        self._coefficient_N: Tensor | None = None

    def loss(self, hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
        """This micro-batch's part of L, a scalar with gradient."""
        context, config = self._context, self._config
        if config.objective == "sdpo" and config.signal.baseline == "seq_mean":
            # The mean is known only when the last token is scored: the logits are made twice.
            logp_N = logprobs(
                hidden_ND,
                weight_VD,
                context.target_N,
                context.temperature_N,
                logits_mib=config.workers.logits_mib,
            )
            self._coefficient_N = self._moved(
                logp_N, advantages(logp_N, self._terms, config.signal), slice(None), self._baseline
            )
        return fused_loss(
            hidden_ND,
            weight_VD,
            context.temperature_N,
            partial(self._gradient, weight_VD),
            logits_mib=config.workers.logits_mib,
        )

    def _gradient(self, weight_VD: Tensor, logits_CV: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        if self._watch is not None:
            self._watch.see(logits_CV, part, self._context.temperature_N, weight_VD)
        if self._config.objective == "sft":
            return self._supervised(logits_CV, part)
        return self._estimated(weight_VD, logits_CV, part)

    def _supervised(self, logits_CV: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        terms = self._terms.chunk(part)
        logp_C, total_C1 = self._scored(logits_CV, part)
        pull_C = base_kl_term(logp_C, terms.base_logp_N, self._config.drift.kl_penalty)
        return self._move(logits_CV, total_C1, logp_C, -terms.weight_N * (1 - pull_C), part)

    def _estimated(self, weight_VD: Tensor, logits_CV: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        signal = self._config.signal
        if signal.estimator != "sampled_token":
            return self._divergence(weight_VD, logits_CV, part)
        kl_C = log_q_C = None
        if signal.baseline == "token_kl":
            log_q_CV = self._target(weight_VD, logits_CV, part)
            log_q_C = log_q_CV.gather(-1, self._context.target_N[part, None])[:, 0]
            kl_C = reverse_kl(logits_CV, log_q_CV, None)
        logp_C, total_C1 = self._scored(logits_CV, part)
        if self._coefficient_N is not None:
            coefficient_C = self._coefficient_N[part]
        elif kl_C is not None and log_q_C is not None:
            coefficient_C = self._moved(logp_C, log_q_C - logp_C, part, -kl_C)
        else:
            advantage_C = advantages(logp_C, self._terms.chunk(part), signal)
            coefficient_C = self._moved(logp_C, advantage_C, part, self._baseline)
        return self._move(logits_CV, total_C1, logp_C, coefficient_C, part)

    def _scored(self, logits_CV: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Log-probs [C] of the targets, and the sums of what `score_` leaves of the logits."""
        logp_C, total_C1 = score_(logits_CV, self._context.target_N[part])
        self.logp_N[part] = logp_C
        return logp_C, total_C1

    def _moved(self, logp_C: Tensor, advantage_C: Tensor, part: slice, baseline: Tensor | float) -> Tensor:
        """dL / d log p(y_t) of the sampled estimator; keeps the record."""
        moved = policy_gradient(
            logp_C,
            advantage_C,
            self._terms.chunk(part),
            self._config.signal,
            kl_penalty=self._config.drift.kl_penalty,
            baseline=baseline,
        )
        self.advantage_N[part] = moved.advantage_N
        self.ratio_N[part] = moved.ratio_N
        return moved.coefficient_N

    def _move(
        self, exp_CV: Tensor, total_C1: Tensor, logp_C: Tensor, coefficient_C: Tensor, part: slice
    ) -> tuple[Tensor, Tensor]:
        """L = sum c_t log p(y_t), so dL/dz = c_t (onehot - softmax), written over exp(z - max z)."""
        grad_CV = exp_CV.mul_(-coefficient_C[:, None] / total_C1)
        grad_CV.scatter_add_(-1, self._context.target_N[part, None], coefficient_C[:, None].to(grad_CV.dtype))
        return (coefficient_C * logp_C).sum(), grad_CV

    def _divergence(self, weight_VD: Tensor, logits_CV: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """KL(p || q) by autograd over one chunk's logits."""
        signal, terms = self._config.signal, self._terms.chunk(part)
        target_C1 = self._context.target_N[part, None]
        log_q_CV = self._target(weight_VD, logits_CV, part)
        with torch.enable_grad():
            student_CV = logits_CV.detach().requires_grad_()
            kl_C = reverse_kl(student_CV, log_q_CV, signal.top_k if signal.estimator == "topk_reverse_kl" else None)
            logp_C = (student_CV.gather(-1, target_C1) - student_CV.logsumexp(-1, keepdim=True))[:, 0]
            known_C = logp_C.detach()
            ratio_C = importance(known_C, terms.sampler_logp_N, signal.tis_cap)
            pull_C = base_kl_term(known_C, terms.base_logp_N, self._config.drift.kl_penalty)
            loss = (terms.weight_N * ratio_C * (kl_C + pull_C * logp_C)).sum()
            (grad_CV,) = torch.autograd.grad(loss, student_CV)
        self.logp_N[part], self.ratio_N[part] = known_C, ratio_C
        self.advantage_N[part] = log_q_CV.gather(-1, target_C1)[:, 0] - known_C
        return loss.detach(), grad_CV

    def _target(self, weight_VD: Tensor, logits_CV: Tensor, part: slice) -> Tensor:
        """log q [C, V] without gradient, from the teacher's hidden states."""
        taught, temperature_C = self._taught, self._context.temperature_N[part]
        head_VD = weight_VD if taught.weight_VD is None else taught.weight_VD
        teacher_CV, reference_CV = (
            None if hidden_ND is None else logits(hidden_ND[part], head_VD, temperature_C)
            for hidden_ND in (taught.hindsight, taught.reference)
        )
        if teacher_CV is None:
            raise AssertionError("a distribution is compared to a teacher's")
        return target_logprobs(logits_CV, teacher_CV, reference_CV, self._config.signal.log_mix)
