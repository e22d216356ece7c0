"""Supervised fine-tuning on the same interactions, whatever the follow-up: the baseline in Table 4 of arXiv 2603.12273.

L = -sum_t w_t (1 - beta (log p - log p_base)) log p(y_t | x, y_<t)      beta is drift.kl_penalty
"""

from dataclasses import dataclass

from torch import Tensor

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.contexts import ContextBuilder
from sdpo_ray.distill.loss.advantages import base_kl_term
from sdpo_ray.distill.loss.sdpo_loss import SDPOLoss
from sdpo_ray.distill.model.lm_head import Gradient


@dataclass(frozen=True)
class Supervised:
    """`objective = "sft"`: no teacher and no context but x."""

    config: DistillConfig
    compares_distributions = False
    num_chunk_tensors = 2

    @property
    def contexts(self) -> tuple[ContextBuilder, ...]:
        return ()

    def teacher_contexts(self, *, scores_prompt: bool) -> tuple[str, ...]:
        return ()

    def gradient(self, student: SDPOLoss, hidden_ND: Tensor, weight_VD: Tensor) -> Gradient:
        def gradient(logits_CV: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            terms = student.terms.chunk(part)
            logp_C, total_C1 = student.score(logits_CV, part)
            pull_C = base_kl_term(logp_C, terms.base_logp_N, self.config.drift.kl_penalty)
            return student.weighted_logprobs(logits_CV, total_C1, logp_C, -terms.weight_N * (1 - pull_C), part)

        return gradient
