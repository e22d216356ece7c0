"""Responses sampled by transformers, for when no engine runs: from the whole distribution at temperature 1.

`generate` would apply the defaults of the policy's `generation_config.json`; here only the seed decides.
"""

from collections.abc import Collection, Sequence
from typing import Any

from sdpo_ray.chat import ChatFormat
from sdpo_ray.records import Consent, FinishReason, Message, Sampling, Turn, VersionSpan


def sample(
    model: Any,
    chat: ChatFormat,
    messages: Sequence[Message],
    *,
    turn_id: str,
    policy_version: int,
    seed: int,
    max_tokens: int,
) -> Turn:
    """The turn in which a transformers `model` answers `messages`, with the log-probs it was sampled with."""
    response_ids, logprobs = _continue(model, chat.prompt_ids(messages), _end_ids(model, chat), seed, max_tokens)
    return turn_of(
        chat,
        messages,
        response_ids,
        logprobs,
        end_ids=_end_ids(model, chat),
        turn_id=turn_id,
        policy_version=policy_version,
        seed=seed,
        max_tokens=max_tokens,
    )


def turn_of(
    chat: ChatFormat,
    messages: Sequence[Message],
    response_ids: tuple[int, ...],
    logprobs: tuple[float, ...],
    *,
    end_ids: Collection[int],
    turn_id: str,
    policy_version: int,
    seed: int | None,
    max_tokens: int,
) -> Turn:
    """The turn of a response sampled at temperature 1 by any engine; STOP if it ends in one of `end_ids`."""
    stopped = response_ids[-1] in end_ids
    return Turn(
        turn_id=turn_id,
        tenant="",
        user="",
        conversation_id="",
        consent=Consent.NONE,
        messages=tuple(messages),
        response=chat.text(response_ids[:-1] if stopped else response_ids),
        prompt_ids=chat.prompt_ids(messages),
        response_ids=response_ids,
        response_logprobs=logprobs,
        version_spans=(VersionSpan(policy_version=policy_version, start=0, end=len(response_ids)),),
        finish_reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
        sampling=Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=max_tokens, seed=seed),
        started_at_s=0.0,
        finished_at_s=0.0,
    )


def _continue(
    model: Any, prompt_ids: tuple[int, ...], end_ids: frozenset[int], seed: int, max_tokens: int
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    response_ids: list[int] = []
    logprobs: list[float] = []
    new_ids, cache = list(prompt_ids), None
    with torch.no_grad():
        while len(response_ids) < max_tokens and not end_ids.intersection(response_ids[-1:]):
            ids_1S = torch.tensor([new_ids], device=model.device)
            output = model(input_ids=ids_1S, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logprobs_V = output.logits[0, -1].float().log_softmax(-1).cpu()
            chosen = int(torch.multinomial(logprobs_V.exp(), 1, generator=generator))
            response_ids.append(chosen)
            logprobs.append(float(logprobs_V[chosen]))
            new_ids, cache = [chosen], output.past_key_values
    return tuple(response_ids), tuple(logprobs)


def _end_ids(model: Any, chat: ChatFormat) -> frozenset[int]:
    """The tokenizer's end token, and those of the model's generation configuration."""
    configured = model.generation_config.eos_token_id
    return frozenset([chat.eos_id, *(configured if isinstance(configured, list) else [configured])])
