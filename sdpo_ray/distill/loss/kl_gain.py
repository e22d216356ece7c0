"""What an adapter gained on held-out interactions: the reduction of SDPO's own objective, over the whole vocabulary.

    gain = KL(shared(.|x, y_<t) || q) - KL(personal(.|x, y_<t) || q),   q = shared(.|x, o, y_<t)

in nats, at each scored token: how much closer the personal policy is to the shared policy that has read the follow-up.
The product of the advantage and the change in log p approximates this where little was learned, but it cannot serve as
the measure: advantages are negative on average, so a policy that makes every response less likely would appear to gain.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sdpo_ray.config import DistillConfig
from sdpo_ray.config.distill import TeacherConfig
from sdpo_ray.distill.data.example import HINDSIGHT, PROMPT, Example
from sdpo_ray.distill.data.packing import PackedRows, micro_batches, rows
from sdpo_ray.distill.loss.advantages import normalized, reverse_kl
from sdpo_ray.distill.loss.teacher import Teacher
from sdpo_ray.distill.model.lm_head import logits
from sdpo_ray.distill.model.packed_lm import Work
from sdpo_ray.distill.train.learner import Learner
from sdpo_ray.records import Gain, Interaction

_TOKENS_PER_PASS = 32
"""Tokens whose distributions exist at a time."""


def gains(
    learner: Learner, interactions: Sequence[Interaction], examples: Sequence[Example], config: DistillConfig
) -> tuple[Gain, ...]:
    """One gain per example that has scored tokens; `examples` were made of `interactions`. Collective."""
    conversations = {each.interaction_id: each.conversation for each in interactions}
    shared = Teacher(TeacherConfig(kind="adapter_off"), list(dict.fromkeys(learner.trained.values())))
    found: list[Gain] = []
    scored = [item for item in examples if item.num_scored]
    for micro_batch in micro_batches(scored, config.workers.max_tokens_per_micro_batch):
        hindsight, prompt = (rows(micro_batch, name, device=learner.device) for name in (HINDSIGHT, PROMPT))
        with torch.no_grad():
            with shared.weights():
                target_ND, before_ND = learner.engine(hindsight, _hidden), learner.engine(prompt, _hidden)
            gain_N = learner.engine(prompt, _gain(prompt, target_ND, before_ND))
        parts = gain_N.split([item.num_scored for item in micro_batch])
        found += [
            Gain(
                interaction_id=item.interaction_id,
                conversation=conversations[item.interaction_id],
                num_tokens=item.num_scored,
                nats=float(part.sum()),
            )
            for item, part in zip(micro_batch, parts, strict=True)
        ]
    return tuple(sorted(found, key=lambda gain: gain.interaction_id))


def _hidden(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    return hidden_ND


def _gain(context: PackedRows, target_ND: Tensor, before_ND: Tensor) -> Work:
    """Work over the personal policy's hidden states. The output weights have no adapter, so all three share them."""

    def work(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
        gain_N = torch.empty(len(hidden_ND), dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, len(hidden_ND), _TOKENS_PER_PASS):
            part = slice(start, start + _TOKENS_PER_PASS)
            target_CV, before_CV, after_CV = (
                logits(each[part], weight_VD, context.temperature_N[part]) for each in (target_ND, before_ND, hidden_ND)
            )
            log_q_CV = normalized(target_CV)
            gain_N[part] = reverse_kl(before_CV, log_q_CV, None) - reverse_kl(after_CV, log_q_CV, None)
        return gain_N

    return work
