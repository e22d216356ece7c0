"""Measures a tiny policy: its share of right answers, and whether it follows a stated taste.

Answers are sampled at temperature 1 with no truncation, since that is how the policy is served.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from sdpo_ray.simulate.tiny_policy.corpus import with_hindsight
from sdpo_ray.simulate.users import PERSONAS, oracle_follow_up, violations
from sdpo_ray.simulate.world import is_right, sample_prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One evaluation on held-out phrasings. Made by `measure`; written to `training.json`."""

    step: int
    loss: float
    """Mean training loss per learned token since the measurement before."""
    right: float
    """Share of right answers with no hindsight."""
    right_in_hindsight: float
    """Share of right answers with the whole persona in the hindsight block."""
    base_violations: float
    """Violated wishes per answer with no hindsight, the mean over personas with three wishes each."""
    oracle_violations: float
    """The same with the whole persona in the hindsight block."""


def sample_answers(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], *, batch_size: int = 64
) -> list[str]:
    """Sample one answer to each prompt at temperature 1, from torch's global generator."""
    answers: list[str] = []
    for first in range(0, len(prompts), batch_size):
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts[first : first + batch_size]]
        texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
        inputs = tokenizer(texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=64,
            )  # fmt: skip
        answers += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def measure(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, *, step: int, loss: float, num_prompts: int, seed: int
) -> Measurement:
    """Measure `model` on held-out prompts, with the personas in rotation. torch's generator keeps its state."""
    rng = random.Random(seed)
    asked = [sample_prompt(rng, "held_out") for _ in range(num_prompts)]
    personas = [list(PERSONAS.values())[index % len(PERSONAS)] for index in range(num_prompts)]
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plain = sample_answers(model, tokenizer, [question.prompt for question in asked])
        in_hindsight = sample_answers(
            model,
            tokenizer,
            [with_hindsight(q.prompt, oracle_follow_up(p)) for q, p in zip(asked, personas, strict=True)],
        )
    model.train(was_training)
    return Measurement(
        step=step,
        loss=loss,
        right=_mean([is_right(q, text) for q, text in zip(asked, plain, strict=True)]),
        right_in_hindsight=_mean([is_right(q, text) for q, text in zip(asked, in_hindsight, strict=True)]),
        base_violations=_mean([len(violations(p, text)) for p, text in zip(personas, plain, strict=True)]),
        oracle_violations=_mean([len(violations(p, text)) for p, text in zip(personas, in_hindsight, strict=True)]),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
