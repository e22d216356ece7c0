"""Reactions to an answer: a follow-up turn or a feedback comment, in one form. Pure functions."""

from dataclasses import dataclass

from sdpo_ray.curate.admission.reasons import NotAdmitted
from sdpo_ray.records import Consent, Feedback, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaction:
    """A user's reaction to an answer. Made by `reaction_in_turn` and `reaction_in_comment`; read by `rules.admit`."""

    interaction_id: str
    text: str
    source_id: str
    """Id of the follow-up turn or of the feedback."""
    consent: Consent
    at_s: float
    """Unix time."""


def reaction_in_turn(answer: Turn, follow_up: Turn) -> Reaction:
    """The last message of `follow_up` as a reaction to `answer`."""
    return Reaction(
        interaction_id=answer.turn_id,
        text=follow_up.messages[-1].content,
        source_id=follow_up.turn_id,
        consent=follow_up.consent,
        at_s=follow_up.started_at_s,
    )


def reaction_in_comment(answer: Turn | None, feedback: Feedback) -> Reaction | NotAdmitted:
    """The comment as a reaction to `answer`, or UNKNOWN_TURN or NOT_THEIRS: only the user who got the answer counts.

    A key rotation gives one user two pseudonyms, so users are compared only when both pseudonyms have the same key.
    Otherwise knowing the turn's id, which cannot be guessed, is the proof.
    """
    if answer is None:
        return NotAdmitted.UNKNOWN_TURN
    if answer.tenant != feedback.tenant or _differ(answer.user, feedback.user):
        return NotAdmitted.NOT_THEIRS
    return Reaction(
        interaction_id=feedback.feedback_id,
        text=feedback.comment,
        source_id=feedback.feedback_id,
        consent=feedback.consent,
        at_s=feedback.given_at_s,
    )


def _differ(one: str, other: str) -> bool:
    """Whether two pseudonyms, `<key id>.<digest>`, are of two users; False where that cannot be known."""
    same_key = one.rpartition(".")[0] == other.rpartition(".")[0]
    return bool(one and other) and same_key and one != other
