"""Keep what a user said of an answer as an interaction, or refuse it with a reason; pure. Nothing is repaired.

An answer that ran into the token limit is kept, and so is one that the user broke off and reacted to: what it teaches
is the learner's choice (`distill.context.truncated`). The user saw all that is recorded of it, since a follow-up is
paired only when it repeats those words.
How old the answering policy is counts when a snapshot is drawn, since the champion moves on meanwhile.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from sdpo_ray.config import CurateConfig
from sdpo_ray.curate.language import Detect, sample
from sdpo_ray.records import Consent, Interaction, Message, Role, Turn

_DAY_S = 86_400


class NotAdmitted(StrEnum):
    """Why an interaction is not learned from; in the order in which it is looked for."""

    NOT_A_FOLLOW_UP = "not_a_follow_up"
    """The digests say that one turn follows the other, the stored words do not."""
    UNKNOWN_TURN = "unknown_turn"
    """Feedback on a turn that is not in the tables."""
    NOT_THEIRS = "not_theirs"
    """Feedback of one tenant or user on another one's turn."""
    NO_CONSENT = "no_consent"
    """The answer or what was said of it may not be learned from."""
    EMPTY_RESPONSE = "empty_response"
    """The answer has no tokens, or no text where it is known as text alone."""
    RESPONSE_TOO_LONG = "response_too_long"
    MIXED_VERSIONS = "mixed_versions"
    """More than one policy version made the answer."""
    NON_FINITE_LOGPROBS = "non_finite_logprobs"
    EMPTY_FOLLOW_UP = "empty_follow_up"
    """The user sent white space."""
    FOLLOW_UP_TOO_SHORT = "follow_up_too_short"
    FOLLOW_UP_TOO_LONG = "follow_up_too_long"
    REPEATS_ANSWER = "repeats_answer"
    """The user sent our answer back, white space and case aside: nothing in it is theirs."""
    TOO_OLD = "too_old"
    NOT_REDACTED = "not_redacted"
    """Something in it should have been taken out before it was written: it was recorded under other rules."""
    UNCLEAR_LANGUAGE = "unclear_language"
    NOT_LANGUAGE = "not_language"
    DUPLICATE = "duplicate"
    """This user had the same (x, y, o) admitted `max_copies` times."""
    USER_FLOOD = "user_flood"
    """This user had `max_per_user_hour` interactions admitted in the hour before."""
    TENANT_FLOOD = "tenant_flood"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaction:
    """What a user said of an answer. Made from a follow-up turn or a comment; read by `admit`."""

    interaction_id: str
    text: str
    said_in: str
    """Id of the turn or the feedback."""
    consent: Consent
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionRules:
    """What `admit` asks beside the run file."""

    config: CurateConfig
    now_s: float
    leaks: Callable[[str], bool]
    """Whether a text holds what the run file has redacted."""
    detect: Detect
    """Asked only where `config.languages` names any."""


def reaction_in_turn(answer: Turn, follow_up: Turn) -> Reaction:
    """The last message of `follow_up` as what was said of `answer`."""
    return Reaction(
        interaction_id=answer.turn_id,
        text=follow_up.messages[-1].content,
        said_in=follow_up.turn_id,
        consent=follow_up.consent,
        at_s=follow_up.started_at_s,
    )


def admit(answer: Turn, said: Reaction, rules: AdmissionRules) -> Interaction | NotAdmitted:
    """The interaction of an answered turn and what was said of it, or why there is none."""
    if (reason := _refuse(answer, said, rules.config) or _refuse_text(answer, said, rules)) is not None:
        return reason
    return Interaction(
        interaction_id=said.interaction_id,
        turn=answer,
        follow_up=said.text,
        follow_up_turn_id=said.said_in,
        follow_up_at_s=said.at_s,
        conversation=answer.keys.conversation,
    )


def _refuse(answer: Turn, said: Reaction, config: CurateConfig) -> NotAdmitted | None:
    text = said.text
    checks = {
        NotAdmitted.NO_CONSENT: any(consent is not Consent.TRAIN for consent in (answer.consent, said.consent)),
        NotAdmitted.EMPTY_RESPONSE: not (answer.response if answer.text_only else answer.response_ids),
        NotAdmitted.RESPONSE_TOO_LONG: len(answer.response) > config.max_response_chars,
        NotAdmitted.MIXED_VERSIONS: len({span.policy_version for span in answer.version_spans}) > 1,
        NotAdmitted.NON_FINITE_LOGPROBS: not all(map(math.isfinite, answer.response_logprobs)),
        NotAdmitted.EMPTY_FOLLOW_UP: not text.strip(),
        NotAdmitted.FOLLOW_UP_TOO_SHORT: len(text.strip()) < config.min_follow_up_chars,
        NotAdmitted.FOLLOW_UP_TOO_LONG: len(text) > config.max_follow_up_chars,
        NotAdmitted.REPEATS_ANSWER: _plain(text) == _plain(answer.response),
    }
    return next((reason for reason, found in checks.items() if found), None)


def _refuse_text(answer: Turn, said: Reaction, rules: AdmissionRules) -> NotAdmitted | None:
    """The checks that cost more, on what passed the others."""
    if rules.now_s - said.at_s > rules.config.max_age_days * _DAY_S:
        return NotAdmitted.TOO_OLD
    if any(map(rules.leaks, (*(message.content for message in answer.messages), answer.response, said.text))):
        return NotAdmitted.NOT_REDACTED
    if not rules.config.languages:
        return None
    # Together: a short follow-up alone is often taken for another language.
    asked = [message for message in answer.messages if message.role is not Role.SYSTEM][-1:]
    spoken = (*asked, _message(Role.ASSISTANT, answer.response), _message(Role.USER, said.text))
    found = rules.detect(sample(spoken))
    if found is None:
        return NotAdmitted.UNCLEAR_LANGUAGE
    return None if found in rules.config.languages else NotAdmitted.NOT_LANGUAGE


def _message(role: Role, content: str) -> Message:
    return Message(role=role, content=content)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
