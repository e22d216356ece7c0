"""The curation stage on a journal, Delta tables and Ray Data."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sdpo_ray.config import CaptureConfig, CurateConfig
from sdpo_ray.curate.admission.reasons import NotAdmitted
from sdpo_ray.curate.pairing import NotPaired
from sdpo_ray.curate.pipeline import CurationProgress, Curator
from sdpo_ray.eventlog.factory import open_log
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Consent, Feedback, Interaction, Redaction, Thumb
from sdpo_ray.redaction import Redactor, redact_turn
from sdpo_ray.tables.arrow_schemas import feedback_from_arrow, interactions_from_arrow, turns_from_arrow
from sdpo_ray.tables.delta_table import Table
from tests.support.conversations import Scenario, changed, chat, dialogue, may_pair, scenarios, turn, unambiguous_pairs
from tests.support.journals import record

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("ray_cluster")]


def curator(layout: Layout, **config: object) -> Curator:
    # The turns of these tests are from 1970.
    curate = CurateConfig(**{"max_age_days": 1e6, "max_per_user_hour": 0} | config)  # type: ignore[arg-type]
    return Curator(layout, open_log(layout, CaptureConfig()), curate=curate, capture=CaptureConfig())


def settle(stage: Curator) -> tuple[int, Counter[str]]:
    """Advance until nothing is undecided. Returns the number of admitted interactions, and counts of the others."""
    total, refused = 0, Counter[str]()
    while True:
        progress = stage.advance()
        total += progress.interactions_admitted
        refused += progress.refused
        if not progress.undecided:
            break
    last = stage.advance()
    return total + last.interactions_admitted, refused + last.refused


def stored(layout: Layout) -> dict[str, Interaction]:
    found = interactions_from_arrow(Table.interactions(layout).read())
    assert len({each.interaction_id for each in found}) == len(found)
    assert len({each.follow_up_turn_id for each in found}) == len(found)
    return {each.interaction_id: each for each in found}


def given_on(turn_id: str, name: str = "f0", **changes: object) -> Feedback:
    fields = {"tenant": "default", "user": "", "consent": Consent.TRAIN, "comment": "Shorter!", "given_at_s": 200.0}
    return Feedback(feedback_id=name, turn_id=turn_id, **fields | changes)  # type: ignore[arg-type]


def test_ingested_turns_are_decided_in_the_next_advance_and_others_are_counted(layout: Layout):
    ann, bob, eve = dialogue("ann", follow_ups=2), dialogue("bob"), dialogue("eve")
    secret = [replace(each, consent=Consent.NONE) for each in eve]
    record(layout, *ann, *bob, *secret, replace(bob[0], response="twice"), given_on("ann-2"))
    stage = curator(layout)
    shipped = stage.advance()
    assert shipped.backlog_bytes > 0
    assert replace(shipped, backlog_bytes=0) == CurationProgress(
        turns_ingested=7,
        turns_total=7,
        feedback_ingested=1,
        interactions_admitted=0,
        interactions_total=0,
        undecided=7,
        backlog_bytes=0,
        refused=Counter(duplicate_turn=1),
    )
    assert stage.advance() == CurationProgress(
        turns_ingested=0,
        turns_total=7,
        feedback_ingested=0,
        interactions_admitted=4,
        interactions_total=4,
        undecided=0,
        backlog_bytes=0,
        refused=Counter(no_consent=1),
    )
    found = stored(layout)
    assert found.keys() == {"ann-0", "ann-1", "bob-0", "f0"}
    assert found["ann-1"] == Interaction(
        interaction_id="ann-1",
        turn=ann[1],
        follow_up="shorter, ann says for the 2. time",
        follow_up_turn_id="ann-2",
        follow_up_at_s=120.0,
        conversation=ann[0].keys.conversation,
    )
    assert found["f0"] == Interaction(
        interaction_id="f0",
        turn=ann[2],
        follow_up="Shorter!",
        follow_up_turn_id="f0",
        follow_up_at_s=200.0,
        conversation=ann[0].keys.conversation,
    )


def test_an_answer_and_its_follow_up_are_paired_whichever_is_read_first(layout: Layout):
    (first, second), (third, fourth) = dialogue("ann"), dialogue("bob")
    stage = curator(layout)
    record(layout, first, fourth)
    stage.advance()
    record(layout, second, third)
    assert stage.advance().interactions_admitted == 1
    assert stage.advance().interactions_admitted == 1
    assert stage.advance().interactions_admitted == 0
    assert stored(layout).keys() == {"ann-0", "bob-0"}


def test_an_answer_from_a_log_that_was_unavailable_is_paired_when_it_is_read(layout: Layout):
    first, second = dialogue("ann")
    stage = curator(layout)
    record(layout, second)
    assert settle(stage) == (0, Counter({NotPaired.UNKNOWN_ANSWER: 1}))
    record(layout, first)
    assert settle(stage) == (1, Counter())
    assert stored(layout)["ann-0"].follow_up_turn_id == "ann-1"


def test_a_second_different_reaction_does_not_replace_the_first(layout: Layout):
    first, second = dialogue("ann")
    stage = curator(layout)
    record(layout, first, second)
    settle(stage)
    edited = changed(second, turn_id="edit", messages=(*second.messages[:-1], *chat("no, longer")))
    record(layout, edited, replace(second, turn_id="retry"))
    assert settle(stage) == (0, Counter(branch=1, duplicate_follow_up=1))
    assert stored(layout)["ann-0"].follow_up_turn_id == "ann-1"


def test_anonymous_conversations_of_the_same_text_are_counted_and_not_paired(layout: Layout):
    first, second = dialogue("ann")
    stranger = replace(first, turn_id="stranger", started_at_s=105.0, finished_at_s=106.0)
    record(layout, first, stranger, second)
    assert settle(curator(layout)) == (0, Counter(ambiguous=1))


def test_town_life_in_micro_batches_gives_what_one_batch_gives(layout: Layout, tmp_path: Path):
    people = [dialogue(f"p{n}", follow_ups=3, user=f"u{n % 3}") for n in range(40)]
    turns = sorted((each for person in people for each in person), key=lambda each: (each.finished_at_s, each.turn_id))
    at_once = Layout(tmp_path / "at once")
    record(at_once, *turns)
    settle(curator(at_once))
    stage = curator(layout, max_batch_turns=25)
    for start in range(0, len(turns), 40):
        part = turns[start : start + 40]
        random.Random(5).shuffle(part)
        record(layout, *part[::2])
        record(layout, *part[1::2])
        stage.advance()
    settle(stage)
    assert stored(layout) == stored(at_once)
    assert len(stored(layout)) == 120


def test_comments_become_interactions_and_thumbs_and_edits_stay_in_their_table(layout: Layout):
    ann = turn("ann-0", user="k1.ann")
    kept = [
        given_on("ann-0", "comment", user="k1.ann"),
        given_on("ann-0", "rotated", user="k2.ann", comment="In a sentence, please."),
        given_on("ann-0", "thumb", user="k1.ann", comment="", thumb=Thumb.DOWN),
        given_on("ann-0", "edit", user="k1.ann", comment="", edited="Paris, France."),
    ]
    refused = [
        given_on("nowhere", "unknown"),
        given_on("ann-0", "tenant", tenant="other"),
        given_on("ann-0", "user", user="k1.bob"),
        given_on("ann-0", "private", user="k1.ann", consent=Consent.NONE, comment="Not for you."),
        given_on("ann-0", "leak", user="k1.ann", comment="I am ann@example.com"),
    ]
    stage = curator(layout)
    # Before its turn, and twice.
    record(layout, *kept, *refused, kept[0])
    assert stage.advance().feedback_ingested == 9
    record(layout, ann, kept[0])
    reasons = (NotAdmitted.UNKNOWN_TURN, NotAdmitted.NO_CONSENT, NotAdmitted.NOT_REDACTED)
    assert settle(stage) == (2, Counter(dict.fromkeys(reasons, 1)) + Counter({NotAdmitted.NOT_THEIRS: 2}))
    found = stored(layout)
    assert {name: each.follow_up for name, each in found.items()} == {
        "comment": "Shorter!",
        "rotated": "In a sentence, please.",
    }
    said = feedback_from_arrow(Table.feedback(layout).read())
    assert {each.feedback_id for each in said} == {each.feedback_id for each in (*kept, *refused)}
    labels = {each.feedback_id: (each.thumb, each.edited) for each in said}
    assert (labels["thumb"], labels["edit"]) == ((Thumb.DOWN, ""), (None, "Paris, France."))


def test_a_redacted_conversation_is_paired_by_raw_text_and_stored_redacted(layout: Layout):
    redactor = Redactor(CaptureConfig().redact)
    first = turn("t0", "I am ann@example.com", response="Hello ann@example.com!")
    second = turn("t1", "I am ann@example.com", "Hello ann@example.com!", "Bye, from ann@example.com", at_s=110.0)
    record(layout, redact_turn(first, redactor), redact_turn(second, redactor))
    assert settle(curator(layout)) == (1, Counter())
    (found,) = stored(layout).values()
    assert "ann@example.com" not in repr(found)
    assert found.turn.text_only
    assert found.turn.redactions == (Redaction(kind="email", n=2),)
    # The same, recorded under other rules than the run file has now.
    record(layout, *dialogue("bob", user="k1.b"), turn("u0", "I am eve@example.com"))
    record(layout, turn("u1", "I am eve@example.com", "Paris.", "no", at_s=110.0))
    assert settle(curator(layout)) == (1, Counter({NotAdmitted.NOT_REDACTED: 1}))


def test_limits_hold_over_micro_batches(layout: Layout):
    stage = curator(layout, max_per_user_hour=3, max_copies=1)
    for n in range(3):
        record(layout, *dialogue(f"p{n}", follow_ups=2, user="k1.ann", at_s=100.0 + 100 * n))
        settle(stage)
    assert sorted(stored(layout)) == ["p0-0", "p0-1", "p1-0"]
    # Another hour, another user; and the same words again.
    record(layout, *dialogue("p3", user="k1.ann", at_s=4000.0), *dialogue("p4", user="k1.bob"))
    assert settle(stage)[0] == 2
    again = [
        changed(each, turn_id=f"again-{each.turn_id}", conversation_id="2") for each in dialogue("p4", user="k1.bob")
    ]
    record(layout, *again)
    assert settle(stage) == (0, Counter({NotAdmitted.DUPLICATE: 1}))


def test_a_lone_opening_needs_no_ray_and_is_decided(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    import ray.data

    monkeypatch.setattr(ray.data, "from_arrow", None)
    record(layout, turn("t0"))
    stage = curator(layout)
    assert settle(stage) == (0, Counter())
    assert stage.advance().undecided == 0
    assert Table.interactions(layout).position("pending.decided") == Table.pending(layout).batch


def test_maintenance_between_advances_changes_nothing_and_removes_expired_answers(layout: Layout):
    stage = curator(layout, compact_every=2, keep_files_h=0, follow_up_days=1)
    for n in range(3):
        record(layout, *dialogue(f"p{n}"))
        stage.advance()
        # Old turns stay while they are undecided.
        stage.maintain()
    settle(stage)
    assert stored(layout).keys() == {"p0-0", "p1-0", "p2-0"}
    assert set(stage.maintain()) <= {"turns", "feedback", "pending", "interactions"}
    record(layout, turn("t0"))
    settle(stage)
    stage.maintain()
    assert Table.pending(layout).num_rows == 0
    assert Table.turns(layout).num_rows == 7


class Killed(BaseException):
    """Raised in place of the end of the process."""


def dying(counter: Callable[[], int], fatal: int, after: bool) -> Callable[..., Callable[..., object]]:
    """Wrap a function so that its `fatal`-th call, counted over all of them, is the last of its process."""

    def wrap(function: Callable[..., object]) -> Callable[..., object]:
        def mortal(*arguments: object, **named: object) -> object:
            number = counter()
            if number == fatal and not after:
                raise Killed
            result = function(*arguments, **named)
            if number == fatal:
                raise Killed
            return result

        return mortal

    return wrap


def advance_and_die(layout: Layout, at: int, *, after: bool) -> bool:
    """One advance of a new process that dies at its `at`-th commit, sync or truncation; False if it has fewer."""
    calls = iter(range(1000))
    mortal = dying(lambda: next(calls), at, after)
    with pytest.MonkeyPatch.context() as patch:
        log = open_log(layout, CaptureConfig())
        patch.setattr(Table, "append", mortal(Table.append))
        patch.setattr(Table, "sync", mortal(Table.sync))
        stage = curator(layout, max_copies=99)
        patch.setattr(stage, "_log", log)
        patch.setattr(log, "truncate", mortal(log.truncate))
        try:
            stage.advance()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_stage_killed_at_every_step_continues_without_loss_or_repetition(layout: Layout, after: bool):
    turns = dialogue("ann", follow_ups=3)
    record(layout, *turns[:2], given_on("ann-0"))
    record(layout, *turns[2:])
    deaths = 0
    for advance in range(3):
        step = 0
        while advance_and_die(layout, step, after=after):
            step, deaths = step + 1, deaths + 1
        if advance == 0:
            record(layout, *dialogue("bob"), given_on("bob-1", "f1", comment="Longer!"))
    settle(curator(layout))
    assert deaths >= 10
    assert sorted(each.turn_id for each in turns_from_arrow(Table.turns(layout).read())) == [
        *(f"ann-{n}" for n in range(4)),
        "bob-0",
        "bob-1",
    ]
    assert stored(layout).keys() == {"ann-0", "ann-1", "ann-2", "bob-0", "f0", "f1"}
    assert not any(path.suffix == ".segment" for path in layout.journal.rglob("*"))


def test_of_two_curators_that_decide_the_same_turns_one_commits(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    record(layout, *dialogue("ann", follow_ups=3), given_on("ann-3"))
    first = curator(layout)
    first.advance()
    append, overtaken = Table.append, []

    def after_another(self: Table, *what: object) -> int | None:
        if self.name == "interactions" and not overtaken:
            overtaken.append(True)
            assert settle(curator(layout))[0] == 4
        return append(self, *what)  # type: ignore[arg-type,no-any-return]

    monkeypatch.setattr(Table, "append", after_another)
    assert settle(first) == (0, Counter())
    assert len(stored(layout)) == 4


@settings(
    deadline=None,
    max_examples=15,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(scenarios(max_turns=10, lossy=True), st.data())
def test_wherever_the_stage_dies_no_pair_is_wrong_lost_or_repeated(
    tmp_path_factory: pytest.TempPathFactory, scenario: Scenario, data: st.DataObject
):
    layout = Layout(tmp_path_factory.mktemp("run"))
    rest = list(scenario.turns)
    while rest:
        size = data.draw(st.integers(1, len(rest)), label="recorded")
        cut = data.draw(st.integers(0, size), label="by the first replica")
        record(layout, *rest[:cut])
        # Both record the last turn, as when an acknowledgement comes too late.
        record(layout, *rest[max(cut - 1, 0) : size])
        rest = rest[size:]
        advance_and_die(layout, data.draw(st.integers(0, 9), label="dies at"), after=data.draw(st.booleans()))
    settle(curator(layout, max_copies=99))
    by_id = {each.turn_id: each for each in (*scenario.turns, *scenario.not_stored)}
    assert sorted(turns_from_arrow(Table.turns(layout).read()), key=lambda each: each.turn_id) == sorted(
        scenario.turns, key=lambda each: each.turn_id
    )
    known = {each.turn_id for each in scenario.turns}
    for each in stored(layout).values():
        follow_up = by_id[each.follow_up_turn_id]
        assert each.turn == by_id[each.interaction_id]
        assert may_pair(each.turn, follow_up)
        assert each.follow_up == follow_up.messages[-1].content
        if (parent := scenario.parents.get(follow_up.turn_id)) in known:
            assert parent == each.interaction_id
    found = {(each.follow_up_turn_id, each.interaction_id) for each in stored(layout).values()}
    assert unambiguous_pairs(scenario.turns) <= found
    positions = {name: Table.interactions(layout).position(name) or 0 for name in ("pending.decided", "pending.seen")}
    assert set(positions.values()) == {Table.pending(layout).batch}
