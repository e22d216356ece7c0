"""Interactions to training examples, or to the named reason why an interaction is not trainable.

y is the engine's own token ids wherever they are known, so its end-of-sequence token is present exactly when it was
emitted. Nothing is repaired: an interaction that cannot be used as it is has a `NotTrainable` reason, and one that is
used in part has an `Alteration`.
"""

from collections import Counter
from collections.abc import Hashable, Iterable
from functools import cache, partial

from sdpo_ray.chat import ChatFormat
from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.contexts import Contexts, contexts, hindsight_block, shortened
from sdpo_ray.distill.data.example import HINDSIGHT, Example
from sdpo_ray.distill.data.filters import Alteration, NotTrainable, content, cut_off, filter_reason, staleness
from sdpo_ray.distill.signals.registry import signal_of
from sdpo_ray.errors import DataError
from sdpo_ray.records import FOREIGN, FinishReason, Interaction, Sampling, Turn
from sdpo_ray.telemetry import Counters


def examples(
    interactions: Iterable[Interaction],
    chat: ChatFormat,
    *,
    config: DistillConfig,
    max_model_len: int,
    parent_version: int,
    refused: Counters,
) -> list[Example]:
    """The trainable examples in order, with the contexts that the run's signal compares.

    `refused` counts the others by their `NotTrainable`, and what was changed in those kept by its `Alteration`.
    """
    usable: list[Example] = []
    copies: Counter[Hashable] = Counter()
    for interaction in interactions:
        found: Example | NotTrainable | None = filter_reason(interaction.turn, config, parent_version)
        if found is None:
            copy = content(interaction)
            copies[copy] += 1
            found = NotTrainable.DUPLICATE if copies[copy] > config.context.max_copies else None
        if found is None:
            found = _example(interaction, chat, config, max_model_len, parent_version, refused)
        if isinstance(found, NotTrainable):
            refused.add(found.value)
        else:
            usable.append(found)
    return usable


def _example(
    interaction: Interaction,
    chat: ChatFormat,
    config: DistillConfig,
    max_model_len: int,
    parent_version: int,
    counts: Counters,
) -> Example | NotTrainable:
    turn, context = interaction.turn, config.context
    response_ids = _response_ids(turn, chat)
    if context.max_response_tokens is not None and len(response_ids) > context.max_response_tokens:
        return NotTrainable.RESPONSE_TOO_LONG
    whole = {builder.name: builder.text(interaction).strip() for builder in signal_of(config).contexts}
    texts = {name: shortened(text, chat, context.max_follow_up_tokens) for name, text in whole.items()}
    found = _contexts(turn, chat, config, texts, room=max_model_len - len(response_ids))
    if isinstance(found, NotTrainable):
        return found
    masked = cut_off(turn) and context.truncated == "mask"
    greedy = turn.sampling.temperature == 0
    as_served = (found.prompt_ids, response_ids) == (turn.prompt_ids, turn.response_ids)
    for alteration, applies in (
        (Alteration.TRUNCATED_MASKED, masked),
        (Alteration.HISTORY_CUT, found.num_left_out > 0),
        (Alteration.FOLLOW_UP_SHORTENED, texts != whole),
    ):
        if applies:
            counts.add(alteration.value)
    half_life = config.signal.staleness_half_life
    return Example(
        interaction_id=interaction.interaction_id,
        prompt_ids=found.prompt_ids,
        hindsight_ids=found.hindsight_ids,
        response_ids=response_ids,
        first_scored=len(response_ids) if masked else min(context.ignore_first_k, len(response_ids)),
        sampler_logprobs=turn.response_logprobs if as_served and _samples_policy(turn.sampling) else (),
        temperature=1.0 if greedy or turn.policy_version == FOREIGN else turn.sampling.temperature,
        weight=1.0 if half_life is None else 0.5 ** (staleness(turn, parent_version) / half_life),
        extra_ids=found.extra_ids,
    )


def _samples_policy(sampling: Sampling) -> bool:
    """Whether tokens were drawn from the policy's own distribution, changed by nothing but a temperature."""
    return (
        sampling.temperature > 0
        and sampling.top_p >= 1
        and not sampling.top_k
        and not sampling.min_p
        and not sampling.presence_penalty
        and not sampling.frequency_penalty
        and sampling.repetition_penalty == 1
        and not sampling.constrained
    )


def _contexts(
    turn: Turn, chat: ChatFormat, config: DistillConfig, texts: dict[str, str], *, room: int
) -> Contexts | NotTrainable:
    render = cache(partial(chat.prompt_ids, tools=turn.tools, template_kwargs=turn.template_kwargs))
    blocks = {name: hindsight_block(config.context.template, text) for name, text in texts.items()}
    block = blocks.pop(HINDSIGHT, "")
    try:
        if not turn.text_only and render(turn.messages) != turn.prompt_ids:
            return NotTrainable.PROMPT_MISMATCH
        found = contexts(turn.messages, block, render, config=config.context, room=room, extra_blocks=blocks)
        return found or NotTrainable.TOO_LONG
    except DataError:
        return NotTrainable.TEMPLATE_ERROR


def _response_ids(turn: Turn, chat: ChatFormat) -> tuple[int, ...]:
    if not turn.text_only:
        return turn.response_ids
    ids = chat.text_ids(chat.control.escape(turn.response))
    ended = turn.finish_reason is FinishReason.STOP and ids[-1:] != (chat.eos_id,)
    return (*ids, chat.eos_id) if ended else ids
