"""What an adapter gained on interactions that were kept apart from it: SDPO's own objective, on the whole vocabulary.

    gain = KL(shared(.|x, y_<t) || q) - KL(personal(.|x, y_<t) || q),   q = shared(.|x, o, y_<t)

in nats, at each scored token: how much closer the personal policy came to what the shared one says once it has read
the user's reaction. The product of the advantage and the change in log p, to which this is close where little was
learned, is no judge: advantages are negative on average, so whoever makes every answer less likely seems to gain.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sdpo_ray.config import DistillConfig
from sdpo_ray.config.distill import TeacherConfig
from sdpo_ray.distill.data.examples import Example
from sdpo_ray.distill.data.packing import PackedRows, micro_batches, rows
from sdpo_ray.distill.loss.advantages import normalized, reverse_kl
from sdpo_ray.distill.loss.teacher import Teacher
from sdpo_ray.distill.model.lm_head import logits
from sdpo_ray.distill.model.packed_lm import Work
from sdpo_ray.distill.train.learner import Learner
from sdpo_ray.records import Gain, Interaction

_AT_ONCE = 32
"""Tokens whose distributions exist at a time."""


def gains(
    learner: Learner, interactions: Sequence[Interaction], examples: Sequence[Example], config: DistillConfig
) -> tuple[Gain, ...]:
    """One for each of `examples` that has scored tokens; `interactions` are those they were made of. Collective."""
    conversations = {each.interaction_id: each.conversation for each in interactions}
    shared = Teacher(TeacherConfig(kind="adapter_off"), list(dict.fromkeys(learner.trained.values())))
    found: list[Gain] = []
    scored = [item for item in examples if item.num_scored]
    for micro_batch in micro_batches(scored, config.workers.max_tokens_per_micro_batch):
        told, plain = (rows(micro_batch, hindsight=told, device=learner.device) for told in (True, False))
        with torch.no_grad():
            with shared.weights():
                told_ND, before_ND = learner.engine(told, _hidden), learner.engine(plain, _hidden)
            gain_N = learner.engine(plain, _gained(plain, told_ND, before_ND))
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


def _gained(context: PackedRows, told_ND: Tensor, before_ND: Tensor) -> Work:
    """Work over the personal policy's hidden states; no adapter is on the output weights, so all three share them."""

    def work(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
        gain_N = torch.empty(len(hidden_ND), dtype=torch.float32, device=hidden_ND.device)
        for start in range(0, len(hidden_ND), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            told_CV, before_CV, after_CV = (
                logits(each[part], weight_VD, context.temperature_N[part]) for each in (told_ND, before_ND, hidden_ND)
            )
            target_CV = normalized(told_CV)
            gain_N[part] = reverse_kl(before_CV, target_CV, None) - reverse_kl(after_CV, target_CV, None)
        return gain_N

    return work
