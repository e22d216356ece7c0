"""A comment on an answer is what the user said of it, like a follow-up; pure."""

from sdpo_ray.curate.admission import NotAdmitted, Reaction
from sdpo_ray.records import Feedback, Turn


def reaction_in_comment(answer: Turn | None, feedback: Feedback) -> Reaction | NotAdmitted:
    """The comment as what was said of `answer`, or why it is not: it must come from the one who was answered.

    Two pseudonyms of one user differ when a key was rotated in between, so only those of one key are compared; the
    turn's id, which nobody can guess, stands for the rest.
    """
    if answer is None:
        return NotAdmitted.UNKNOWN_TURN
    if answer.tenant != feedback.tenant or _differ(answer.user, feedback.user):
        return NotAdmitted.NOT_THEIRS
    return Reaction(
        interaction_id=feedback.feedback_id,
        text=feedback.comment,
        said_in=feedback.feedback_id,
        consent=feedback.consent,
        at_s=feedback.given_at_s,
    )


def _differ(one: str, other: str) -> bool:
    same_key = one.rpartition(".")[0] == other.rpartition(".")[0]
    return bool(one and other) and same_key and one != other
