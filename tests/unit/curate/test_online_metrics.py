"""Online metrics of policies from the tables, over several calls."""

from pathlib import Path
from typing import Any

import pytest

from sdpo_ray.curate.online_metrics import FinishedAnswer, ObservedReaction, OnlineMetrics
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Consent, Feedback, FinishReason, Interaction, Thumb, Turn, VersionSpan
from sdpo_ray.tables.arrow_schemas import feedback_to_arrow, interactions_to_arrow, turns_to_arrow
from sdpo_ray.tables.delta_table import Table
from tests.support.conversations import turn

SINCE_S = 1000.0


class Tables:
    """The three tables of a run, and online metrics of them."""

    def __init__(self, folder: Path) -> None:
        layout = Layout(folder)
        self.turns, self.feedback = Table.turns(layout), Table.feedback(layout)
        self.interactions = Table.interactions(layout)
        self.look = OnlineMetrics(self.turns, self.feedback, self.interactions, since_s=SINCE_S)

    def store(self, *turns: Turn) -> None:
        assert self.turns.append(turns_to_arrow(turns), {}) is not None

    def add_feedback(self, *feedback: Feedback) -> None:
        assert self.feedback.append(feedback_to_arrow(feedback), {}) is not None

    def admit(self, *interactions: Interaction) -> None:
        assert self.interactions.append(interactions_to_arrow(interactions), {}) is not None


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(tmp_path)


def answered(name: str, version: int, *, at_s: float = SINCE_S, **changes: Any) -> Turn:
    spans = (VersionSpan(policy_version=version, start=0, end=2),)
    return turn(name, f"Question of {name}?", at_s=at_s, **({"version_spans": spans} | changes))


def reacted(to: Turn, follow_up: str, *, at_s: float | None = None) -> Interaction:
    return Interaction(
        interaction_id=to.turn_id,
        turn=to,
        follow_up=follow_up,
        follow_up_turn_id=f"{to.turn_id}-next",
        follow_up_at_s=to.finished_at_s + 5 if at_s is None else at_s,
        conversation=to.keys.conversation,
    )


def feedback_on(to: str, *, at_s: float = SINCE_S + 10, **what: Any) -> Feedback:
    stated = {"tenant": "default", "user": "", "consent": Consent.TRAIN, "given_at_s": at_s}
    return Feedback(feedback_id=f"f-{to}-{at_s}", turn_id=to, **(stated | what))


def test_follow_ups_are_read_and_come_in_their_order(tables: Tables):
    tables.admit(
        reacted(answered("b", 7), "Too long.", at_s=SINCE_S + 9), reacted(answered("a", 3), "Thanks!", at_s=SINCE_S + 5)
    )
    assert tables.look.reactions() == [
        ObservedReaction(policy_version=3, complaint=False),
        ObservedReaction(policy_version=7, complaint=True),
    ]
    assert tables.look.reactions() == []
    tables.admit(reacted(answered("c", 7), "And in Spain?"))
    assert tables.look.reactions() == [ObservedReaction(policy_version=7, complaint=False)]


def test_the_first_reaction_of_a_conversation_counts_and_no_other(tables: Tables):
    opening = answered("a", 7)
    later = turn("a2", "Question of a?", "Paris.", "Too long.", at_s=SINCE_S + 10, version_spans=opening.version_spans)
    assert opening.keys.conversation == later.keys.conversation
    tables.admit(reacted(later, "Perfect.", at_s=SINCE_S + 30), reacted(opening, "Too long.", at_s=SINCE_S + 10))
    assert tables.look.reactions() == [ObservedReaction(policy_version=7, complaint=True)]
    other = answered("a", 3)
    tables.admit(reacted(other, "Perfect."))
    assert tables.look.reactions() == [ObservedReaction(policy_version=3, complaint=False)]


@pytest.mark.parametrize(
    "left_out",
    [
        {"at_s": SINCE_S - 1},
        {"adapter": "personal-1"},
        {
            "version_spans": (
                VersionSpan(policy_version=3, start=0, end=1),
                VersionSpan(policy_version=7, start=1, end=2),
            )
        },
    ],
)
def test_answers_that_say_nothing_about_one_policy_are_left_out(tables: Tables, left_out: dict[str, Any]):
    one = answered("a", 7, **left_out)
    tables.store(one)
    tables.admit(reacted(one, "Too long.", at_s=SINCE_S + 5))
    tables.add_feedback(feedback_on("a", thumb=Thumb.DOWN))
    assert tables.look.reactions() == []
    assert tables.look.finished() == []


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ({"thumb": Thumb.DOWN}, True),
        ({"thumb": Thumb.UP}, False),
        ({"edited": "Paris, in France."}, True),
        ({"edited": "Paris, in France.", "thumb": Thumb.UP}, True),
    ],
)
def test_thumbs_and_edited_answers_are_reactions_and_comments_do_not_count_twice(
    tables: Tables, what: dict[str, Any], complaint: bool
):
    one = answered("a", 7)
    tables.store(one)
    tables.add_feedback(feedback_on("a", **what))
    tables.admit(reacted(one, "Too long."), reacted(answered("b", 3), "Too long."))
    assert tables.look.reactions() == [
        ObservedReaction(policy_version=7, complaint=complaint),
        ObservedReaction(policy_version=3, complaint=True),
    ]


def test_feedback_waits_for_its_turn_and_feedback_of_another_user_does_not_count(tables: Tables):
    tables.add_feedback(feedback_on("a", thumb=Thumb.DOWN), feedback_on("b", thumb=Thumb.DOWN, tenant="other"))
    assert tables.look.reactions() == []
    tables.store(answered("a", 7), answered("b", 7))
    assert tables.look.reactions() == [ObservedReaction(policy_version=7, complaint=True)]
    assert tables.look.reactions() == []


def test_answers_that_were_not_aborted_are_timed(tables: Tables):
    tables.store(
        answered("late", 7, at_s=SINCE_S + 20, finished_at_s=SINCE_S + 23),
        answered("soon", 3, at_s=SINCE_S + 10),
        answered("left", 7, finish_reason=FinishReason.ABORT),
        answered("empty", 7, response="", response_ids=(), response_logprobs=()),
    )
    assert tables.look.finished() == [
        FinishedAnswer(policy_version=3, seconds=1.0, tokens=2),
        FinishedAnswer(policy_version=7, seconds=3.0, tokens=2),
    ]
    assert tables.look.finished() == []


def test_a_second_reader_finds_what_the_first_found(tables: Tables):
    tables.store(answered("a", 7), answered("b", 3))
    tables.admit(reacted(answered("a", 7), "Too long."))
    first = (tables.look.finished(), tables.look.reactions())
    again = OnlineMetrics(tables.turns, tables.feedback, tables.interactions, since_s=SINCE_S)
    assert (again.finished(), again.reactions()) == first
