"""Reverse KL to the teacher over the vocabulary, or over the student's top K and one bucket for the rest.

    L = sum_t w_t r_t (KL(p || q) + beta (log p - log p_base) log p)         p student, q teacher; beta is kl_penalty

Source: the later branch of the authors of arXiv 2603.12273; for a fixed o the expected gradient is that of
`sampled_token` (Lemma B.1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.contexts import HINDSIGHT_CONTEXT
from sdpo_ray.distill.data.example import HINDSIGHT, PROMPT
from sdpo_ray.distill.loss.advantages import base_kl_term, importance, reverse_kl, target_logprobs
from sdpo_ray.distill.loss.sdpo_loss import SDPOLoss
from sdpo_ray.distill.model.lm_head import Gradient

_COMPARED = 6
"""Tensors of a chunk's size where two distributions are compared: the student's, the teacher's, and autograd's."""
_MIXED, _MIXED_REFERENCE = 7, 9
"""The same where the two are mixed, without and with the teacher's own score of x."""


@dataclass(frozen=True)
class ReverseKL:
    """`signal.estimator = "full_kl"` and `"topk_reverse_kl"`."""

    config: DistillConfig
    contexts = (HINDSIGHT_CONTEXT,)
    compares_distributions = True

    @property
    def num_chunk_tensors(self) -> int:
        return chunk_tensors(self.config)

    def teacher_contexts(self, *, scores_prompt: bool) -> tuple[str, ...]:
        return (HINDSIGHT, PROMPT) if scores_prompt else (HINDSIGHT,)

    def gradient(self, student: SDPOLoss, hidden_ND: Tensor, weight_VD: Tensor) -> Gradient:
        signal = self.config.signal
        top_k = signal.top_k if signal.estimator == "topk_reverse_kl" else None

        def gradient(logits_CV: Tensor, part: slice) -> tuple[Tensor, Tensor]:
            terms, target_C1 = student.terms.chunk(part), student.context.target_N[part, None]
            log_q_CV = target_of(student, weight_VD, logits_CV, part)
            with torch.enable_grad():
                student_CV = logits_CV.detach().requires_grad_()
                kl_C = reverse_kl(student_CV, log_q_CV, top_k)
                logp_C = (student_CV.gather(-1, target_C1) - student_CV.logsumexp(-1, keepdim=True))[:, 0]
                known_C = logp_C.detach()
                ratio_C = importance(known_C, terms.sampler_logp_N, signal.tis_cap)
                pull_C = base_kl_term(known_C, terms.base_logp_N, self.config.drift.kl_penalty)
                loss = (terms.weight_N * ratio_C * (kl_C + pull_C * logp_C)).sum()
                (grad_CV,) = torch.autograd.grad(loss, student_CV)
            student.logp_N[part], student.ratio_N[part] = known_C, ratio_C
            student.advantage_N[part] = log_q_CV.gather(-1, target_C1)[:, 0] - known_C
            return loss.detach(), grad_CV

        return gradient


def target_of(student: SDPOLoss, weight_VD: Tensor, logits_CV: Tensor, part: slice) -> Tensor:
    """log q [C, V] without gradient, from the teacher's hidden states under hindsight, mixed as `log_mix` says."""
    teacher_CV = student.teacher_logits(HINDSIGHT, weight_VD, part)
    if teacher_CV is None:
        raise AssertionError("the teacher scored no hindsight context")
    reference_CV = student.teacher_logits(PROMPT, weight_VD, part)
    return target_logprobs(logits_CV, teacher_CV, reference_CV, student.config.signal.log_mix)


def chunk_tensors(config: DistillConfig) -> int:
    """Tensors as large as a chunk's logits that exist at a time where whole distributions are compared."""
    if config.signal.log_mix is None:
        return _COMPARED
    return _MIXED_REFERENCE if config.teacher.scores_prompt else _MIXED
