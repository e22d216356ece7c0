"""Attribution of a follow-up to the tokens of a response: log p(y_t|x, o) - log p(y_t|x) of one policy.

`token_attributions` scores one sequence at a time with a transformers model, for a few interactions that a user
inspects. A caller that has the log-probs already, such as the learner, needs only `assemble`.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from sdpo_ray.chat import FINGERPRINT_TEXT, ChatFormat
from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.example import Example
from sdpo_ray.distill.data.examples import examples
from sdpo_ray.errors import DataError
from sdpo_ray.records import Interaction, Role, TokenAttribution
from sdpo_ray.telemetry import Counters

_UNFINISHED = "\ufffd"
_LOOK_AHEAD = 8
"""Tokens that may share characters: a character has four bytes at most, and a token may end one and begin the next."""
_LOOK_BACK = 32
"""Most tokens before that are decoded again together with the next."""


def token_attributions(
    model: Any,
    chat: ChatFormat,
    interactions: Iterable[Interaction],
    *,
    config: DistillConfig,
    max_model_len: int,
    refused: Counters,
) -> list[TokenAttribution]:
    """The attribution of each interaction in the contexts that an update of `model` would compare.

    Every token of y is scored, also those that an update would mask, and no response is too old. `model` is a
    transformers causal language model. Interactions that cannot be built are counted in `refused` by reason.
    """
    unmasked = _unmasked(config)
    found = []
    for interaction in interactions:
        version = interaction.turn.policy_version
        for example in examples(
            [interaction],
            chat,
            config=unmasked,
            max_model_len=max_model_len,
            parent_version=version,
            refused=refused,
        ):
            prompt, hindsight = (
                score(model, context_ids, example.response_ids, example.temperature)
                for context_ids in (example.prompt_ids, example.hindsight_ids)
            )
            found.append(assemble(interaction, chat, example, logprobs=prompt, hindsight_logprobs=hindsight))
    return found


def assemble(
    interaction: Interaction,
    chat: ChatFormat,
    example: Example,
    *,
    logprobs: Sequence[float],
    hindsight_logprobs: Sequence[float],
) -> TokenAttribution:
    """The attribution from log p(y_t | x, y_<t) and log p(y_t | x, o, y_<t), one of each per response token, in nats.

    Raises DataError where their number differs from the tokens', or an advantage is not finite.
    """
    if not len(example.response_ids) == len(logprobs) == len(hindsight_logprobs):
        raise DataError(
            f"{example.interaction_id}: {len(example.response_ids)} response tokens, {len(logprobs)} log-probs, "
            f"{len(hindsight_logprobs)} under hindsight"
        )
    advantages = tuple(after - before for before, after in zip(logprobs, hindsight_logprobs, strict=True))
    if not all(map(math.isfinite, advantages)):
        raise DataError(f"{example.interaction_id}: an advantage is not finite")
    user_messages = [message for message in interaction.turn.messages if message.role is Role.USER]
    return TokenAttribution(
        interaction_id=interaction.interaction_id,
        prompt=user_messages[-1].content,
        follow_up=interaction.follow_up,
        tokens=token_strings(chat, example.response_ids),
        advantages=advantages,
        logprobs=tuple(logprobs),
    )


def token_strings(chat: ChatFormat, token_ids: Sequence[int]) -> tuple[str, ...]:
    """One string per token; joined, they give the text, with control tokens as they are written.

    Byte-level tokenizers split characters: the first token of such a character has it whole, the others are empty.
    Bytes that belong to no character become U+FFFD.
    """
    strings: list[str] = []
    whole_from = 0
    while rest := token_ids[len(strings) :]:
        start = len(strings)
        together = _next_characters(chat, token_ids[max(whole_from, start - _LOOK_BACK) : start], rest)
        if together[0] and _UNFINISHED not in together[0]:
            whole_from = start
        strings += together
    return tuple(strings)


def score(model: Any, context_ids: Sequence[int], response_ids: Sequence[int], temperature: float) -> list[float]:
    """log p(y_t | context, y_<t) of each response token, in nats, with logits divided by `temperature`."""
    import torch

    ids_1S = torch.tensor([[*context_ids, *response_ids]], device=model.device)
    with torch.no_grad():
        logits_TV = model(input_ids=ids_1S, use_cache=False, logits_to_keep=len(response_ids) + 1).logits[0, :-1]
    return _chosen(logits_TV, response_ids, temperature)


def noise_floor(model: Any, chat: ChatFormat) -> float:
    """The largest advantage, in nats, that rounding alone causes on the fingerprint's text.

    Compares `score` with the same sums in another order: the first half is read first, and the rest with its cached
    keys and values.
    """
    import torch

    token_ids = chat.text_ids(FINGERPRINT_TEXT)
    context_ids, response_ids = token_ids[: len(token_ids) // 2], token_ids[len(token_ids) // 2 :]
    with torch.no_grad():
        cached = model(
            input_ids=torch.tensor([context_ids[:-1]], device=model.device), use_cache=True, logits_to_keep=1
        )
        ids_1T = torch.tensor([[context_ids[-1], *response_ids[:-1]]], device=model.device)
        logits_TV = model(input_ids=ids_1T, past_key_values=cached.past_key_values, use_cache=True).logits[0]
    with_cache = _chosen(logits_TV, response_ids, 1.0)
    at_once = score(model, context_ids, response_ids, 1.0)
    return max(abs(a - b) for a, b in zip(at_once, with_cache, strict=True))


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
    """Strings of the first tokens of `rest` that together make whole characters; else of the first token alone.

    They are decoded after the tokens before them, because some tokenizers drop the space at the start of a text.
    """
    known = len(chat.text(before))
    for size in range(1, min(_LOOK_AHEAD, len(rest)) + 1):
        text = chat.text([*before, *rest[:size]])[known:]
        if _UNFINISHED not in text:
            return [text] + [""] * (size - 1)
    return [chat.text([*before, rest[0]])[known:]]
