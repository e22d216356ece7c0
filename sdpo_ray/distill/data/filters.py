"""Why an interaction is not learned from, as far as it is seen without rendering a prompt; pure."""

import math
from collections.abc import Hashable
from enum import StrEnum

from sdpo_ray.config import DistillConfig
from sdpo_ray.records import FOREIGN, FinishReason, Interaction, Turn


class NotTrainable(StrEnum):
    """Why an interaction is not learned from; in the order in which it is looked for."""

    TEXT_ONLY = "text_only"
    """The answer is of elsewhere and known as text alone, which `context.text_only` refuses."""
    REDACTED = "redacted"
    """Something was redacted in the turn, and `context.redacted` refuses such turns."""
    STALE = "stale"
    TRUNCATED = "truncated"
    """The answer was cut off, and `context.truncated` drops such answers."""
    EMPTY_RESPONSE = "empty_response"
    NON_FINITE_LOGPROB = "non_finite_logprob"
    DUPLICATE = "duplicate"
    """`context.max_copies` interactions with the same x, y and o came before."""
    RESPONSE_TOO_LONG = "response_too_long"
    TEMPLATE_ERROR = "template_error"
    """The policy's template refuses the messages."""
    PROMPT_MISMATCH = "prompt_mismatch"
    """The policy's template or tokenizer no longer renders the prompt that was served."""
    TOO_LONG = "too_long"
    """The last user message and what follows it do not fit, whatever is left out before it."""


class Alteration(StrEnum):
    """What was done to an interaction that counts in the batch all the same."""

    TRUNCATED_MASKED = "truncated_masked"
    """The answer was cut off: none of its tokens is scored."""
    HISTORY_CUT = "history_cut"
    """Messages were left out of both contexts."""
    FOLLOW_UP_SHORTENED = "follow_up_shortened"


def filter_reason(turn: Turn, config: DistillConfig, parent_version: int) -> NotTrainable | None:
    """Why not, as far as it is seen without rendering anything."""
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
    """Whether the answer has no end of its own: it ran into the token limit, or somebody broke it off."""
    return turn.finish_reason is not FinishReason.STOP


def content(interaction: Interaction) -> Hashable:
    """x, y and o of an interaction."""
    turn = interaction.turn
    asked = (turn.messages, turn.tools, turn.template_kwargs) if turn.text_only else turn.prompt_ids
    return asked, turn.response if turn.text_only else turn.response_ids, interaction.follow_up.strip()


def staleness(turn: Turn, parent_version: int) -> int:
    """Versions between the policy that answered and the one that learns; 0 for an answer of elsewhere."""
    return 0 if turn.policy_version == FOREIGN else max(0, parent_version - turn.policy_version)
