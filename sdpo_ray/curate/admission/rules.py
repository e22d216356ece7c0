"""Turn an answer and its reaction into an interaction, or give the reason against it. Pure functions; no repairs.

An answer that was cut off by the token limit is admitted, and so is one that the user aborted and reacted to: the
learner decides what to learn from them (`distill.context.truncated`). The recorded text of such an answer is what the
user saw, since a follow-up is paired only when it repeats that text. The age of the answering policy is checked when a
snapshot is drawn, since the champion changes in between.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from sdpo_ray.config import CurateConfig
from sdpo_ray.curate.admission.reactions import Reaction
from sdpo_ray.curate.admission.reasons import NotAdmitted
from sdpo_ray.curate.language import Detect, sample
from sdpo_ray.records import Consent, Interaction, Message, Role, Turn

_DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionRules:
    """What `admit` checks against. Made by `curate.admission.task`; read by `admit`."""

    config: CurateConfig
    now_s: float
    """Unix time."""
    leaks: Callable[[str], bool]
    """Whether a text holds what the run file redacts."""
    detect: Detect
    """Called only where `config.languages` is not empty."""


def admit(answer: Turn, reaction: Reaction, rules: AdmissionRules) -> Interaction | NotAdmitted:
    """The interaction of an answer and a reaction to it, or the first reason against it."""
    reason = _reason(answer, reaction, rules.config) or _reason_by_text(answer, reaction, rules)
    if reason is not None:
        return reason
    return Interaction(
        interaction_id=reaction.interaction_id,
        turn=answer,
        follow_up=reaction.text,
        follow_up_turn_id=reaction.source_id,
        follow_up_at_s=reaction.at_s,
        conversation=answer.keys.conversation,
    )


def _reason(answer: Turn, reaction: Reaction, config: CurateConfig) -> NotAdmitted | None:
    text = reaction.text
    checks = {
        NotAdmitted.NO_CONSENT: any(consent is not Consent.TRAIN for consent in (answer.consent, reaction.consent)),
        NotAdmitted.EMPTY_RESPONSE: not (answer.response if answer.text_only else answer.response_ids),
        NotAdmitted.RESPONSE_TOO_LONG: len(answer.response) > config.max_response_chars,
        NotAdmitted.MIXED_VERSIONS: len({span.policy_version for span in answer.version_spans}) > 1,
        NotAdmitted.NON_FINITE_LOGPROBS: not all(map(math.isfinite, answer.response_logprobs)),
        NotAdmitted.EMPTY_FOLLOW_UP: not text.strip(),
        NotAdmitted.FOLLOW_UP_TOO_SHORT: len(text.strip()) < config.min_follow_up_chars,
        NotAdmitted.FOLLOW_UP_TOO_LONG: len(text) > config.max_follow_up_chars,
        NotAdmitted.REPEATS_ANSWER: _normalized(text) == _normalized(answer.response),
    }
    return next((reason for reason, applies in checks.items() if applies), None)


def _reason_by_text(answer: Turn, reaction: Reaction, rules: AdmissionRules) -> NotAdmitted | None:
    """The expensive checks, run only after the others passed."""
    if rules.now_s - reaction.at_s > rules.config.max_age_days * _DAY_S:
        return NotAdmitted.TOO_OLD
    if any(map(rules.leaks, (*(message.content for message in answer.messages), answer.response, reaction.text))):
        return NotAdmitted.NOT_REDACTED
    if not rules.config.languages:
        return None
    # Question, answer and reaction together: a short follow-up alone is often taken for another language.
    question = [message for message in answer.messages if message.role is not Role.SYSTEM][-1:]
    messages = (*question, _message(Role.ASSISTANT, answer.response), _message(Role.USER, reaction.text))
    language = rules.detect(sample(messages))
    if language is None:
        return NotAdmitted.UNCLEAR_LANGUAGE
    return None if language in rules.config.languages else NotAdmitted.NOT_LANGUAGE


def _message(role: Role, content: str) -> Message:
    return Message(role=role, content=content)


def _normalized(text: str) -> str:
    return " ".join(text.split()).casefold()
