"""Named reasons why an interaction is not trainable, and the checks that need no rendered prompt. Pure."""

import math
from collections.abc import Hashable
from enum import StrEnum

from sdpo_ray.config import DistillConfig
from sdpo_ray.records import FOREIGN, FinishReason, Interaction, Turn


class NotTrainable(StrEnum):
    """Why an interaction is not trainable, in the order of the checks."""

    TEXT_ONLY = "text_only"
    """The response was imported as text without token ids, and `context.text_only` is `refuse`."""
    REDACTED = "redacted"
    """Something was redacted in the turn, and `context.redacted` is `refuse`."""
    STALE = "stale"
    """The response is more than `signal.max_staleness` policy versions old."""
    TRUNCATED = "truncated"
    """The response was cut off, and `context.truncated` is `drop`."""
    EMPTY_RESPONSE = "empty_response"
    NON_FINITE_LOGPROB = "non_finite_logprob"
    DUPLICATE = "duplicate"
    """`context.max_copies` interactions with the same x, y and o came before."""
    RESPONSE_TOO_LONG = "response_too_long"
    """The response has more than `context.max_response_tokens` tokens."""
    TEMPLATE_ERROR = "template_error"
    """The policy's chat template raises an error for the messages."""
    PROMPT_MISMATCH = "prompt_mismatch"
    """The policy's template or tokenizer no longer renders the prompt that was served."""
    TOO_LONG = "too_long"
    """The last user message and what follows it do not fit, even with everything before it left out."""


class Alteration(StrEnum):
    """What was changed in an interaction that is trained on in part."""

    TRUNCATED_MASKED = "truncated_masked"
    """The response was cut off, so none of its tokens is scored."""
    HISTORY_CUT = "history_cut"
    """Messages were left out of every context."""
    FOLLOW_UP_SHORTENED = "follow_up_shortened"
    """A text in a hindsight block was longer than `context.max_follow_up_tokens`."""


def filter_reason(turn: Turn, config: DistillConfig, parent_version: int) -> NotTrainable | None:
    """The first reason that applies of those that need no rendered prompt; None where none does."""
    limit = config.signal.max_staleness
    checks = {
        NotTrainable.TEXT_ONLY: turn.policy_version == FOREIGN and config.context.text_only == "refuse",
        NotTrainable.REDACTED: bool(turn.redactions) and config.context.redacted == "refuse",
        NotTrainable.STALE: limit is not None and staleness(turn, parent_version) > limit,
        NotTrainable.TRUNCATED: cut_off(turn) and config.context.truncated == "drop",
        NotTrainable.EMPTY_RESPONSE: not (turn.response if turn.text_only else turn.response_ids),
        NotTrainable.NON_FINITE_LOGPROB: not all(map(math.isfinite, turn.response_logprobs)),
    }
    return next((reason for reason, found in checks.items() if found), None)


def cut_off(turn: Turn) -> bool:
    """Whether the response did not end by itself: it ran into the token limit or was aborted."""
    return turn.finish_reason is not FinishReason.STOP


def content(interaction: Interaction) -> Hashable:
    """x, y and o of an interaction, for counting copies."""
    turn = interaction.turn
    prompt = (turn.messages, turn.tools, turn.template_kwargs) if turn.text_only else turn.prompt_ids
    return prompt, turn.response if turn.text_only else turn.response_ids, interaction.follow_up.strip()


def staleness(turn: Turn, parent_version: int) -> int:
    """Versions between the policy that answered and the update's parent; 0 for an imported response."""
    return 0 if turn.policy_version == FOREIGN else max(0, parent_version - turn.policy_version)
