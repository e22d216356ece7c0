"""What the learner needs of an interaction, or why it learns nothing from it.

y is the engine's own ids wherever they are known, so its end-of-sequence token is there exactly when it was emitted.
Nothing is repaired: what cannot be learned from as it is has a name, and so has whatever was changed.
"""

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cache, partial

from sdpo_ray.chat import ChatFormat
from sdpo_ray.config import DistillConfig
from sdpo_ray.distill.data.contexts import Contexts, contexts, hindsight_block, shortened
from sdpo_ray.distill.data.filters import Alteration, NotTrainable, content, cut_off, filter_reason, staleness
from sdpo_ray.errors import DataError
from sdpo_ray.records import FOREIGN, FinishReason, Interaction, Sampling, Turn
from sdpo_ray.telemetry import Counters


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """What the learner needs of one interaction. Made here; read by `packing`."""

    interaction_id: str
    prompt_ids: tuple[int, ...]
    hindsight_ids: tuple[int, ...]
    """(x, o); equal to `prompt_ids` where the follow-up is empty."""
    response_ids: tuple[int, ...]
    first_scored: int
    """Response tokens before it are not scored; as many as there are scores none."""
    sampler_logprobs: tuple[float, ...]
    """One a response token; none where they are not those of the whole distribution at `temperature` after this x."""
    temperature: float
    """Divides the logits in both contexts, as it did when y was sampled; 1 for a greedy answer."""
    weight: float
    """Of the sequence in its batch: 1, or less with the age of the policy that answered."""

    @property
    def num_scored(self) -> int:
        return len(self.response_ids) - self.first_scored


def examples(
    interactions: Iterable[Interaction],
    chat: ChatFormat,
    *,
    config: DistillConfig,
    max_model_len: int,
    parent_version: int,
    refused: Counters,
) -> list[Example]:
    """The usable examples in order; the others are counted in `refused` by their `NotTrainable`.

    `refused` counts by their `Alteration`, too, what was changed in those that are learned from.
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
    response_ids = _response_ids(turn, chat, config)
    if context.max_response_tokens is not None and len(response_ids) > context.max_response_tokens:
        return NotTrainable.RESPONSE_TOO_LONG
    follow_up = "" if config.objective == "sft" else interaction.follow_up.strip()
    told = shortened(follow_up, chat, context.max_follow_up_tokens)
    found = _contexts(turn, chat, config, told, room=max_model_len - len(response_ids))
    if isinstance(found, NotTrainable):
        return found
    masked = cut_off(turn) and context.truncated == "mask"
    greedy = turn.sampling.temperature == 0
    as_served = (found.prompt_ids, response_ids) == (turn.prompt_ids, turn.response_ids)
    for altered, happened in (
        (Alteration.TRUNCATED_MASKED, masked),
        (Alteration.HISTORY_CUT, found.num_left_out > 0),
        (Alteration.FOLLOW_UP_SHORTENED, told != follow_up),
    ):
        if happened:
            counts.add(altered.value)
    half_life = config.signal.staleness_half_life
    return Example(
        interaction_id=interaction.interaction_id,
        prompt_ids=found.prompt_ids,
        hindsight_ids=found.hindsight_ids,
        response_ids=response_ids,
        first_scored=len(response_ids) if masked else min(context.ignore_first_k, len(response_ids)),
        sampler_logprobs=turn.response_logprobs if as_served and _whole(turn.sampling) else (),
        temperature=1.0 if greedy or turn.policy_version == FOREIGN else turn.sampling.temperature,
        weight=1.0 if half_life is None else 0.5 ** (staleness(turn, parent_version) / half_life),
    )


def _whole(sampling: Sampling) -> bool:
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


def _contexts(turn: Turn, chat: ChatFormat, config: DistillConfig, told: str, *, room: int) -> Contexts | NotTrainable:
    render = cache(partial(chat.prompt_ids, tools=turn.tools, template_kwargs=turn.template_kwargs))
    block = hindsight_block(config.context.template, told)
    try:
        if not turn.text_only and render(turn.messages) != turn.prompt_ids:
            return NotTrainable.PROMPT_MISMATCH
        return contexts(turn.messages, block, render, config=config.context, room=room) or NotTrainable.TOO_LONG
    except DataError:
        return NotTrainable.TEMPLATE_ERROR


def _response_ids(turn: Turn, chat: ChatFormat, config: DistillConfig) -> tuple[int, ...]:
    ids = chat.text_ids(chat.control.escape(turn.response)) if turn.text_only else turn.response_ids
    emitted = turn.text_only and turn.finish_reason is FinishReason.STOP
    ends = emitted or config.context.end_token == "always"
    return (*ids, chat.eos_id) if ends and ids[-1:] != (chat.eos_id,) else ids
