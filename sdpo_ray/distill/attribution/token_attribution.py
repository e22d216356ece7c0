"""What each token of an answer is moved by: log p(y|x, o) - log p(y|x) of one policy, made readable.

Here a model is asked, plainly and one sequence at a time: these are a few interactions that a person looks at. Whoever
has the log-probs already, as the learner does, needs `assemble` alone.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from sdpo_ray.chat import FINGERPRINT_TEXT, ChatFormat
from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.examples import Example, examples
from sdpo_ray.errors import DataError
from sdpo_ray.records import Interaction, Role, TokenSignal
from sdpo_ray.telemetry import Counters

_UNFINISHED = "\ufffd"
_LOOK_AHEAD = 8
"""Tokens that may share characters: each has four bytes at most, and a token may end one and begin the next."""
_LOOK_BACK = 32
"""Tokens before, at most, that are decoded again with the next."""


def token_signals(
    model: Any,
    chat: ChatFormat,
    interactions: Iterable[Interaction],
    *,
    config: DistillConfig,
    max_model_len: int,
    refused: Counters,
) -> list[TokenSignal]:
    """The signal of each interaction in the contexts that an update of `model` would compare.

    Every token of y is scored, whichever of them an update would mask, and no answer is too old. `model` is a causal
    language model of transformers. Interactions without contexts are counted in `refused` by reason.
    """
    everything = _unmasked(config)
    found = []
    for interaction in interactions:
        version = interaction.turn.policy_version
        for example in examples(
            [interaction],
            chat,
            config=everything,
            max_model_len=max_model_len,
            parent_version=version,
            refused=refused,
        ):
            served, hindsight = (
                score(model, context_ids, example.response_ids, example.temperature)
                for context_ids in (example.prompt_ids, example.hindsight_ids)
            )
            found.append(assemble(interaction, chat, example, logprobs=served, hindsight_logprobs=hindsight))
    return found


def assemble(
    interaction: Interaction,
    chat: ChatFormat,
    example: Example,
    *,
    logprobs: Sequence[float],
    hindsight_logprobs: Sequence[float],
) -> TokenSignal:
    """The signal of log p(y_t | x, y_<t) and log p(y_t | x, o, y_<t), one each a response token, in nats.

    Raises DataError where they are not as many as the tokens, or not finite.
    """
    if not len(example.response_ids) == len(logprobs) == len(hindsight_logprobs):
        raise DataError(
            f"{example.interaction_id}: {len(example.response_ids)} response tokens, {len(logprobs)} log-probs, "
            f"{len(hindsight_logprobs)} under hindsight"
        )
    advantages = tuple(after - before for before, after in zip(logprobs, hindsight_logprobs, strict=True))
    if not all(map(math.isfinite, advantages)):
        raise DataError(f"{example.interaction_id}: an advantage is not finite")
    asked = [message for message in interaction.turn.messages if message.role is Role.USER]
    return TokenSignal(
        interaction_id=interaction.interaction_id,
        prompt=asked[-1].content,
        follow_up=interaction.follow_up,
        tokens=token_strings(chat, example.response_ids),
        advantages=advantages,
        logprobs=tuple(logprobs),
    )


def token_strings(chat: ChatFormat, token_ids: Sequence[int]) -> tuple[str, ...]:
    """One string a token, which joined give the text; control tokens show as they are written.

    Byte-level tokenizers cut characters: the first token of such a character shows it whole, the others are empty.
    Bytes that belong to no character show as U+FFFD.
    """
    strings: list[str] = []
    clean = 0
    while rest := token_ids[len(strings) :]:
        start = len(strings)
        together = _next_characters(chat, token_ids[max(clean, start - _LOOK_BACK) : start], rest)
        if together[0] and _UNFINISHED not in together[0]:
            clean = start
        strings += together
    return tuple(strings)


def score(model: Any, context_ids: Sequence[int], response_ids: Sequence[int], temperature: float) -> list[float]:
    """log p(y_t | context, y_<t) of each response token, nats, logits divided by `temperature`."""
    import torch

    ids_1S = torch.tensor([[*context_ids, *response_ids]], device=model.device)
    with torch.no_grad():
        logits_TV = model(input_ids=ids_1S, use_cache=False, logits_to_keep=len(response_ids) + 1).logits[0, :-1]
    return _chosen(logits_TV, response_ids, temperature)


def noise_floor(model: Any, chat: ChatFormat) -> float:
    """The largest advantage, in nats, that rounding alone makes on the fingerprint's text.

    It is `score` against the same sums in another order: the beginning is read first, and the rest from the keys and
    values that were kept of it.
    """
    import torch

    token_ids = chat.text_ids(FINGERPRINT_TEXT)
    context_ids, response_ids = token_ids[: len(token_ids) // 2], token_ids[len(token_ids) // 2 :]
    with torch.no_grad():
        kept = model(input_ids=torch.tensor([context_ids[:-1]], device=model.device), use_cache=True, logits_to_keep=1)
        ids_1T = torch.tensor([[context_ids[-1], *response_ids[:-1]]], device=model.device)
        logits_TV = model(input_ids=ids_1T, past_key_values=kept.past_key_values, use_cache=True).logits[0]
    there = _chosen(logits_TV, response_ids, 1.0)
    here = score(model, context_ids, response_ids, 1.0)
    return max(abs(a - b) for a, b in zip(here, there, strict=True))


def _chosen(logits_TV: Any, token_ids: Sequence[int], temperature: float) -> list[float]:
    import torch

    chosen_T1 = torch.tensor(token_ids, device=logits_TV.device)[:, None]
    logprobs: list[float] = (logits_TV.float() / temperature).log_softmax(-1).gather(-1, chosen_T1)[:, 0].tolist()
    return logprobs


def _unmasked(config: DistillConfig) -> DistillConfig:
    context = config.context.model_copy(
        update={
            "truncated": "train",
            "ignore_first_k": 0,
            "text_only": "train",
            "redacted": "train",
            "max_response_tokens": None,
        }
    )
    return config.model_copy(update={"context": context, "objective": "sdpo"})


def _next_characters(chat: ChatFormat, before: Sequence[int], rest: Sequence[int]) -> list[str]:
    """Strings of the first tokens of `rest`, as many as make whole characters together; else of the first alone.

    They are decoded behind the ones before them, because some tokenizers drop the space that a text begins with.
    """
    known = len(chat.text(before))
    for size in range(1, min(_LOOK_AHEAD, len(rest)) + 1):
        text = chat.text([*before, *rest[:size]])[known:]
        if _UNFINISHED not in text:
            return [text] + [""] * (size - 1)
    return [chat.text([*before, rest[0]])[known:]]
