"""One micro-batch of a step: the student's logits, the teacher's scores, and the loss that the signal makes of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.packing import PackedRows
from sdpo_ray.distill.loss.advantages import LossTerms, PolicyGradient, policy_gradient
from sdpo_ray.distill.loss.kl_monitor import KLMonitor
from sdpo_ray.distill.model.lm_head import fused_loss, logits, score_
from sdpo_ray.distill.signals.protocol import Signal


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherScores:
    """The teacher's view of a micro-batch. Made by `step.score_with_teacher`; read by `distill.signals`."""

    by_context: Mapping[str, Tensor] = field(default_factory=dict)
    """Log-probs [N] of the scored tokens, or hidden states [N, D] where the signal compares distributions."""
    weight_VD: Tensor | None = None
    """The teacher's output weights; None where they are the student's."""


class SDPOLoss:
    """The loss of one micro-batch, and what a signal computes it from.

    After `loss`, `logp_N`, `advantage_N` and `ratio_N` hold what the student scored, detached.
    """

    def __init__(
        self,
        context: PackedRows,
        terms: LossTerms,
        teacher: TeacherScores,
        config: DistillConfig,
        signal: Signal,
        *,
        baseline: float = 0.0,
        monitor: KLMonitor | None = None,
    ) -> None:
        self.context, self.terms, self.teacher, self.config = context, terms, teacher, config
        self.baseline = baseline
        """Moving average of the earlier batches' mean advantages, in nats."""
        self._signal, self._monitor = signal, monitor
        num_tokens = len(context.target_N)
        self.logp_N = torch.empty(num_tokens, device=context.target_N.device)
        self.advantage_N = torch.zeros_like(self.logp_N)
        self.ratio_N = torch.ones_like(self.logp_N)

    def loss(self, hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
        """This micro-batch's part of L, a scalar with gradient."""
        gradient = self._signal.gradient(self, hidden_ND, weight_VD)

        def monitored(logits_CV: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            if self._monitor is not None:
                self._monitor.update(logits_CV, part, self.context.temperature_N, weight_VD)
            return gradient(logits_CV, part)

        return fused_loss(
            hidden_ND, weight_VD, self.context.temperature_N, monitored, logits_mib=self.config.workers.logits_mib
        )

    def score(self, logits_CV: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Log-probs [C] of the targets, recorded, and the row sums [C, 1] of the exp(z - max z) left in `logits_CV`."""
        logp_C, total_C1 = score_(logits_CV, self.context.target_N[part])
        self.logp_N[part] = logp_C
        return logp_C, total_C1

    def policy_gradient(
        self, logp_C: Tensor, advantage_C: Tensor, part: slice, *, baseline: Tensor | float = 0.0
    ) -> Tensor:
        """d L / d log p(y_t) [C] for bounded advantages less a baseline; records advantages and importance ratios."""
        found: PolicyGradient = policy_gradient(
            logp_C,
            advantage_C,
            self.terms.chunk(part),
            self.config.signal,
            kl_penalty=self.config.drift.kl_penalty,
            baseline=baseline,
        )
        self.advantage_N[part] = found.advantage_N
        self.ratio_N[part] = found.ratio_N
        return found.coefficient_N

    def weighted_logprobs(
        self, exp_CV: Tensor, total_C1: Tensor, logp_C: Tensor, coefficient_C: Tensor, part: slice
    ) -> tuple[Tensor, Tensor]:
        """L = sum c_t log p(y_t) and dL/dz = c_t (onehot - softmax), from what `score` returned and left behind."""
        grad_CV = exp_CV.mul_(-coefficient_C[:, None] / total_C1)
        grad_CV.scatter_add_(-1, self.context.target_N[part, None], coefficient_C[:, None].to(grad_CV.dtype))
        return (coefficient_C * logp_C).sum(), grad_CV

    def teacher_logits(self, name: str, weight_VD: Tensor, part: slice) -> Tensor | None:
        """The teacher's logits [C, V] in the context `name`; None where it did not score that context."""
        hidden_ND = self.teacher.by_context.get(name)
        if hidden_ND is None:
            return None
        head_VD = weight_VD if self.teacher.weight_VD is None else self.teacher.weight_VD
        return logits(hidden_ND[part], head_VD, self.context.temperature_N[part])
