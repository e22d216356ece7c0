"""The gradient of the SDPO loss in four implementations: ours, the authors', TRL's, and one sequence at a time.

Each returns `step(examples) -> loss`, which adds the gradient of L = -mean_sequences mean_tokens A log p to the
parameters. Live teacher, sampled tokens, no bound, no correction.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from workload import Workload

from sdpo_ray.distill.data.example import Example

Step = Callable[[Sequence[Example]], float]


def ours(model: Any, work: Workload) -> Step:
    """`run_step` as the learner calls it, without DeepSpeed."""
    from sdpo_ray.config import DistillConfig
    from sdpo_ray.distill.data.packing import shard
    from sdpo_ray.distill.loss.step import StepPolicy, run_step
    from sdpo_ray.distill.model.attention import PACKED, register
    from sdpo_ray.distill.model.packed_lm import PackedLM

    register()
    model.set_attn_implementation(PACKED)
    config = DistillConfig.model_validate(
        {
            "teacher": {"kind": "live"},
            "signal": {"log_mix": None, "tis_cap": None},
            "lora": {"rank": work.lora_rank},
            "workers": {"max_tokens_per_micro_batch": work.max_tokens, "logits_mib": work.logits_mib},
        }
    )
    policy = StepPolicy(
        run=PackedLM(model),
        device=torch.device(work.device),
    )

    def step(examples: Sequence[Example]) -> float:
        sums = run_step(shard(examples, rank=0, num_workers=1, max_tokens=work.max_tokens), policy, config)
        return float(sums.loss)

    return step


def authors(model: Any, work: Workload, *, online: bool = False) -> Step:
    """The style of lasgroup/user_interactions at 93cc18d, written anew from a description.

    A padded batch, logits of every position of x and y, their fp32 copy, a log-softmax over all of it, of which the
    response's tokens are picked. Its offline trainer makes two passes; the online one scores y under x once more. In
    its favour: no activation checkpointing, and no entropy for a metric.
    """

    def logprobs(examples: Sequence[Example], *, hindsight: bool) -> tuple[Tensor, Tensor]:
        ids, mask, response = _padded(examples, hindsight=hindsight, device=work.device)
        every = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        picked = every[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        width = response.shape[1]
        return picked[:, -width:], response

    def part(examples: Sequence[Example]) -> Tensor:
        with torch.no_grad():
            teacher, _ = logprobs(examples, hindsight=True)
            before = logprobs(examples, hindsight=False)[0] if online else None
        student, scored = logprobs(examples, hindsight=False)
        advantage = teacher - (student.detach() if before is None else before)
        return -((advantage * student * scored).sum(-1) / scored.sum(-1)).mean()

    return _accumulated(part, work.peer_micro_batch)


def trl(model: Any, work: Workload) -> Step:
    """SDPOTrainer's own methods of TRL 1.16: the logits of the last C + 1 positions of a padded batch.

    With distillation alone, the trainer's `loss_type` is a mean over tokens, then over sequences, as here.
    """
    from trl.experimental.sdpo.sdpo_trainer import SDPOTrainer

    class Trainer:
        _forward_logits = SDPOTrainer._forward_logits
        _compute_teacher_student_logits = SDPOTrainer._compute_teacher_student_logits
        _compute_self_distillation_loss = SDPOTrainer._compute_self_distillation_loss
        _get_teacher_context_for_self_distillation = staticmethod(nullcontext)
        model_kwarg_keys = frozenset({"logits_to_keep"})
        temperature = 1.0
        args = SimpleNamespace(distillation_mode="sampled_token", distillation_alpha=1.0, distillation_is_clip=None)
        accelerator = SimpleNamespace(gather=lambda tensor: tensor)

        def _log_self_distillation_metric(self, mode: str, value: float) -> None:
            """Called by the trainer's step; the metric is not used here."""

    trainer = Trainer()

    def part(examples: Sequence[Example]) -> Tensor:
        ids, mask, response = _padded(examples, hindsight=False, device=work.device)
        teacher_ids, teacher_mask, _ = _padded(examples, hindsight=True, device=work.device)
        width = response.shape[1]
        inputs = {
            "prompt_ids": ids[:, :-width],
            "prompt_mask": mask[:, :-width],
            "completion_ids": ids[:, -width:],
            "completion_mask": response,
            "teacher_input_ids": teacher_ids,
            "teacher_attention_mask": teacher_mask,
        }
        found = trainer._compute_teacher_student_logits(model, model, inputs)
        loss: Tensor = trainer._compute_self_distillation_loss(model, inputs, found)
        return loss

    return _accumulated(part, work.peer_micro_batch)


def reference(model: Any, work: Workload) -> Step:
    """One unpadded sequence at a time by autograd, in the precision of `model`."""

    def logprobs(context: Sequence[int], response: Sequence[int]) -> Tensor:
        ids = torch.tensor([[*context, *response]], device=work.device)
        scores = model(input_ids=ids, use_cache=False, logits_to_keep=len(response) + 1).logits[0, :-1]
        return scores.log_softmax(-1).gather(-1, ids[0, -len(response) :, None])[:, 0]

    def part(examples: Sequence[Example]) -> Tensor:
        (each,) = examples
        with torch.no_grad():
            teacher = logprobs(each.hindsight_ids, each.response_ids)
        student = logprobs(each.prompt_ids, each.response_ids)
        return -((teacher - student.detach()) * student).mean()

    return _accumulated(part, 1)


def _accumulated(part: Callable[[Sequence[Example]], Tensor], micro_batch: int) -> Step:
    def step(examples: Sequence[Example]) -> float:
        total = 0.0
        for start in range(0, len(examples), micro_batch):
            some = examples[start : start + micro_batch]
            loss = part(some) * (len(some) / len(examples))
            loss.backward()
            total += loss.item()
        return total

    return step


def _padded(examples: Sequence[Example], *, hindsight: bool, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and attention mask of contexts padded on the left and responses on the right, and the responses' mask."""
    contexts = [each.hindsight_ids if hindsight else each.prompt_ids for each in examples]
    left = max(map(len, contexts))
    right = max(len(each.response_ids) for each in examples)
    ids, mask = [], []
    for context, each in zip(contexts, examples, strict=True):
        before, after = left - len(context), right - len(each.response_ids)
        ids.append((0,) * before + context + each.response_ids + (0,) * after)
        mask.append((0,) * before + (1,) * (len(context) + len(each.response_ids)) + (0,) * after)
    attention = torch.tensor(mask, device=device)
    return torch.tensor(ids, device=device), attention, attention[:, left:]
