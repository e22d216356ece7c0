"""The two contexts of an interaction as token ids: x as it was served, and (x, o) with hindsight.

y is appended unchanged to both, so its end-of-sequence token is there exactly when the engine emitted it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from sdpo_ray.chat import ChatFormat
from sdpo_ray.records import Interaction, Message, Sampling
from sdpo_ray.telemetry import Counters

HINDSIGHT = (
    "\n\n=== HINDSIGHT CONTEXT ===\n"
    "[The following is a future user message. Use this to guide your answer to the user prompt.]\n"
)
"""Source: `online_sdpo_trainer.py` of lasgroup/user_interactions, close to Table 1 of arXiv 2603.12273."""


class Unusable(StrEnum):
    """Why an interaction is not learned from."""

    EMPTY_RESPONSE = "empty_response"
    PROMPT_MISMATCH = "prompt_mismatch"
    """The policy's template or tokenizer no longer renders the prompt that was served."""
    TOO_LONG = "too_long"
    NON_FINITE_LOGPROB = "non_finite_logprob"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """What the learner needs of one interaction. Made here; read by `packing`."""

    interaction_id: str
    prompt_ids: tuple[int, ...]
    hindsight_ids: tuple[int, ...]
    """(x, o); equal to `prompt_ids` where the follow-up is empty."""
    response_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    temperature: float
    """Divides the logits in both contexts, as it did when y was sampled; 1 for a greedy answer."""
    comparable: bool
    """The sampler's log-probs are those of the whole distribution at `temperature`: no greedy choice, no truncation."""


def example(interaction: Interaction, chat: ChatFormat, max_model_len: int) -> Example | Unusable:
    """Both contexts of an interaction, or why it has none."""
    turn = interaction.turn
    if not turn.response_ids:
        return Unusable.EMPTY_RESPONSE
    if not all(map(math.isfinite, turn.response_logprobs)):
        return Unusable.NON_FINITE_LOGPROB
    if chat.prompt_ids(turn.messages) != turn.prompt_ids:
        return Unusable.PROMPT_MISMATCH
    hindsight_ids = turn.prompt_ids
    if follow_up := interaction.follow_up.strip():
        hindsight_ids = chat.prompt_ids(_with_hindsight(turn.messages, follow_up))
    if max(len(turn.prompt_ids), len(hindsight_ids)) + len(turn.response_ids) > max_model_len:
        return Unusable.TOO_LONG
    greedy = turn.sampling.temperature == 0
    return Example(
        interaction_id=interaction.interaction_id,
        prompt_ids=turn.prompt_ids,
        hindsight_ids=hindsight_ids,
        response_ids=turn.response_ids,
        sampler_logprobs=turn.response_logprobs,
        temperature=1.0 if greedy else turn.sampling.temperature,
        comparable=not greedy and not _truncated(turn.sampling),
    )


def examples(
    interactions: Iterable[Interaction], chat: ChatFormat, max_model_len: int, refused: Counters
) -> list[Example]:
    """The usable examples in order; the others are counted in `refused` by reason."""
    usable = []
    for interaction in interactions:
        match example(interaction, chat, max_model_len):
            case Unusable() as reason:
                refused.add(reason.value)
            case Example() as found:
                usable.append(found)
    return usable


def _with_hindsight(messages: tuple[Message, ...], follow_up: str) -> tuple[Message, ...]:
    """A `Turn` ends with a user message, so the last message is the last user message."""
    *history, last = messages
    return (*history, replace(last, content=f"{last.content}{HINDSIGHT}{follow_up}"))


def _truncated(sampling: Sampling) -> bool:
    return sampling.top_p < 1 or sampling.top_k > 0
