"""Keep an interaction, or refuse it with a reason; pure. Nothing is repaired.

An answer that ran into the token limit is kept: what it teaches is the learner's choice (`distill.context.truncated`).
"""

import math
from enum import StrEnum

from sdpo_ray.curate.sessionize import conversation, follows
from sdpo_ray.records import Consent, FinishReason, Interaction, Turn


class Refusal(StrEnum):
    """Why an interaction is not learned from; in the order in which it is looked for."""

    NOT_A_FOLLOW_UP = "not_a_follow_up"
    """The digests say that one turn follows the other, the words do not."""
    NO_CONSENT = "no_consent"
    """One of the two turns may not be learned from."""
    ABORTED = "aborted"
    """The answer was broken off: the user did not react to all of it."""
    EMPTY_RESPONSE = "empty_response"
    """The answer has no tokens, or no text where it is known as text alone."""
    MIXED_VERSIONS = "mixed_versions"
    """More than one policy version made the answer."""
    NON_FINITE_LOGPROBS = "non_finite_logprobs"
    EMPTY_FOLLOW_UP = "empty_follow_up"
    """The user sent white space."""
    FOLLOW_UP_TOO_LONG = "follow_up_too_long"
    REPEATS_ANSWER = "repeats_answer"
    """The user sent our answer back, white space and case aside: nothing in it is theirs."""


def admit(answer: Turn, follow_up: Turn, *, max_follow_up_chars: int) -> Interaction | Refusal:
    """The interaction of an answered turn and the turn whose last message reacts to it, or why there is none."""
    said = follow_up.messages[-1].content
    if (reason := _refuse(answer, follow_up, said, max_follow_up_chars)) is not None:
        return reason
    return Interaction(
        interaction_id=answer.turn_id,
        turn=answer,
        follow_up=said,
        follow_up_turn_id=follow_up.turn_id,
        follow_up_at_s=follow_up.started_at_s,
        conversation=conversation(answer),
    )


def _refuse(answer: Turn, follow_up: Turn, said: str, max_chars: int) -> Refusal | None:
    checks = {
        Refusal.NOT_A_FOLLOW_UP: not follows(follow_up, answer),
        Refusal.NO_CONSENT: any(turn.consent is not Consent.TRAIN for turn in (answer, follow_up)),
        Refusal.ABORTED: answer.finish_reason is FinishReason.ABORT,
        Refusal.EMPTY_RESPONSE: not (answer.response if answer.text_only else answer.response_ids),
        Refusal.MIXED_VERSIONS: len({span.policy_version for span in answer.version_spans}) > 1,
        Refusal.NON_FINITE_LOGPROBS: not all(map(math.isfinite, answer.response_logprobs)),
        Refusal.EMPTY_FOLLOW_UP: not said.strip(),
        Refusal.FOLLOW_UP_TOO_LONG: len(said) > max_chars,
        Refusal.REPEATS_ANSWER: _plain(said) == _plain(answer.response),
    }
    return next((reason for reason, found in checks.items() if found), None)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
