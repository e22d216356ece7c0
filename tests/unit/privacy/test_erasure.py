"""Erasure of a user from a run made by hand, without Ray and MLflow."""

import json
import threading
import time
from dataclasses import replace

import pytest

from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.distill.train.train_loop import _interactions as learned_from
from sdpo_ray.errors import ConfigError, DataError
from sdpo_ray.eventlog.journal.log import JournalLog
from sdpo_ray.io.files import READY, read_json
from sdpo_ray.io.locks import data_lock
from sdpo_ray.io.paths import Layout
from sdpo_ray.privacy import derived_data, snapshot_erasure
from sdpo_ray.privacy.user_footprint import UserTables
from sdpo_ray.records import Candidate, Consent, Feedback, Interaction, Snapshot, Turn
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.tables.snapshot_files import read_erased, read_interactions
from sdpo_ray.tables.tombstones import Tombstones
from tests.support.conversations import changed, dialogue
from tests.support.erasing import VICTIM, Killed, erase, erase_job
from tests.support.user_data import finished_cycle, hits, interactions_of, people, pseudonym, store


def a_run(layout: Layout) -> dict[str, list[Turn]]:
    """Three people with three turns each; the victim's were drawn by the second of three cycles."""
    said = people(layout, ("ann", VICTIM, "bob"))
    interactions = [each for turns in said.values() for each in interactions_of(turns)]
    store(layout, [each for turns in said.values() for each in turns], interactions)
    finished_cycle(layout, 1, interactions_of(said["ann"]), parent=1)
    finished_cycle(layout, 2, interactions, parent=2)
    finished_cycle(layout, 3, interactions_of(said["bob"]), parent=3)
    return said


def state(layout: Layout) -> dict[str, bytes]:
    """The bytes of every file except locks."""
    return {str(p): p.read_bytes() for p in sorted(layout.root.rglob("*")) if p.is_file() and p.suffix != ".lock"}


def ids(table: Table, name: str = "turn_id") -> set[str]:
    table.refresh()
    return set(table.read([name])[name].to_pylist())


def test_no_byte_of_a_user_is_left_and_other_users_stay(layout):
    said = a_run(layout)
    words = (VICTIM, pseudonym(layout, VICTIM))
    assert len(hits(layout.root, words)) == 5
    erased = erase(layout)
    assert hits(layout.root, words) == {}
    tables = UserTables.of(layout)
    others = {each.turn_id for name in ("ann", "bob") for each in said[name]}
    assert ids(tables.turns) == ids(tables.pending) == others
    assert ids(tables.interactions, "interaction_id") == {"a-0", "a-1", "b-0", "b-1"}
    assert erased.rows == {"turns": 3, "interactions": 2, "pending": 3, "feedback": 0}
    assert erased.snapshots == {str(layout.snapshot(2)): 2}
    assert erased.events_in_log == 0


def test_positions_and_counts_of_the_tables_survive(layout):
    a_run(layout)
    erase(layout)
    tables = UserTables.of(layout)
    assert tables.turns.position("p0") == 9
    assert tables.interactions.position("pending.decided") == 1
    assert tables.turns.num_rows == 6


def test_a_snapshot_keeps_its_ids_and_is_read_without_the_erased_rows(layout):
    a_run(layout)
    before = read_json(layout.snapshot(2) / "snapshot.json", Snapshot)
    rows = read_interactions(layout.snapshot(2))
    erasure = erase(layout).erasure_id
    assert read_json(layout.snapshot(2) / "snapshot.json", Snapshot) == before
    left = [each for each in rows if not each.interaction_id.startswith("m-")]
    assert read_interactions(layout.snapshot(2)) == left == learned_from(before)
    gone = read_erased(layout.snapshot(2))
    assert [row.interaction_id for row in gone] == ["m-0", "m-1"]
    assert {row.erasure_id for row in gone} == {erasure}
    assert len({row.digest for row in gone}) == 2


def test_a_snapshot_that_lacks_a_row_for_another_reason_is_refused(layout):
    a_run(layout)
    erase(layout)
    drawn = read_json(layout.snapshot(2) / "snapshot.json", Snapshot)
    with pytest.raises(DataError, match="does not hold"):
        learned_from(replace(drawn, interaction_ids=(*drawn.interaction_ids, "lost")))


def test_candidates_keep_their_weights_and_show_only_other_users(layout):
    a_run(layout)
    weights = layout.candidate(3) / "model.safetensors"
    weights.write_bytes(b"weights")
    erased = erase(layout)
    records = [layout.candidate(3) / "candidate.json", layout.cycle(2) / "distill.json"]
    assert erased.records == [str(path) for path in records]
    for path in records:
        assert [each.interaction_id for each in read_json(path, Candidate).attributions] == ["a-0", "a-1"]
    assert weights.read_bytes() == b"weights"


def test_policies_that_learned_from_a_user_are_listed_with_their_descendants(layout):
    a_run(layout)
    erased = erase(layout)
    assert [(each.policy_version, each.num_interactions, each.parent_version) for each in erased.learned] == [
        (3, 2, 2),
        (4, 0, 3),
    ]
    assert [each.served for each in erased.learned] == [False, True]
    assert all(each.released for each in erased.learned)
    assert erased.newest_release_without == 2


def test_a_dry_run_reports_the_same_and_changes_nothing(layout):
    a_run(layout)
    Tombstones(layout)
    before = state(layout)
    found = erase(layout, dry=True)
    assert state(layout) == before
    erased = erase(layout)
    assert (found.rows, found.snapshots, found.learned) == (erased.rows, erased.snapshots, erased.learned)


def test_an_unknown_user_is_no_error_and_no_table_is_rewritten(layout):
    a_run(layout)
    versions = [table.version for table in vars_of(UserTables.of(layout))]
    erased = erase(layout, user="nobody")
    assert not any((*erased.rows.values(), erased.snapshots, erased.records, erased.learned))
    assert [table.version for table in vars_of(UserTables.of(layout))] == versions


def vars_of(tables: UserTables) -> list[Table]:
    return [tables.turns, tables.feedback, tables.interactions, tables.pending]


def test_the_same_name_under_another_tenant_is_another_user(layout):
    said = people(layout, (VICTIM,))[VICTIM]
    elsewhere = [changed(each, tenant="shop", turn_id=f"shop-{each.turn_id}") for each in said]
    store(layout, [*said, *elsewhere], [*interactions_of(said), *interactions_of(elsewhere)])
    erase(layout)
    assert ids(UserTables.of(layout).turns) == {each.turn_id for each in elsewhere}


def test_a_user_is_found_under_every_key(layout):
    before = people(layout, (VICTIM,))[VICTIM]
    Pseudonyms.load(layout.pseudonym_keys).rotate()
    after = dialogue("later", user=pseudonym(layout, VICTIM))
    store(layout, [*before, *after], [*interactions_of(before), *interactions_of(after)])
    assert erase(layout).rows["turns"] == 5


def given(feedback_id: str, turn_id: str, *, user: str = "", comment: str = "no") -> Feedback:
    return Feedback(
        feedback_id=feedback_id,
        turn_id=turn_id,
        tenant="default",
        user=user,
        consent=Consent.TRAIN,
        comment=comment,
        given_at_s=200.0,
    )


def commented(feedback: Feedback, turn: Turn) -> Interaction:
    return Interaction(
        interaction_id=feedback.feedback_id,
        turn=turn,
        follow_up=feedback.comment,
        follow_up_turn_id=feedback.feedback_id,
        follow_up_at_s=feedback.given_at_s,
        conversation=turn.keys.conversation,
    )


def test_feedback_by_the_user_and_on_the_users_turns_is_erased_with_its_interactions(layout):
    said = people(layout, ("ann", VICTIM))
    anonymous = dialogue("anonymous")
    on_theirs = given("f1", said[VICTIM][0].turn_id)
    by_them = given("f2", anonymous[0].turn_id, user=pseudonym(layout, VICTIM))
    of_ann = given("f3", said["ann"][0].turn_id)
    store(
        layout,
        [*said["ann"], *said[VICTIM], *anonymous],
        [
            commented(on_theirs, said[VICTIM][0]),
            commented(by_them, anonymous[0]),
            commented(of_ann, said["ann"][0]),
            *interactions_of(anonymous),
        ],
        [on_theirs, by_them, of_ann],
    )
    erased = erase(layout)
    tables = UserTables.of(layout)
    assert ids(tables.feedback, "feedback_id") == {"f3"}
    assert ids(tables.interactions, "interaction_id") == {"f3", "anonymous-0"}
    assert (erased.rows["feedback"], erased.rows["interactions"]) == (2, 2)


def test_an_anonymous_user_names_a_turn_and_its_conversation_is_erased(layout):
    theirs, other = dialogue("anon", follow_ups=3), dialogue("other")
    store(layout, [*theirs, *other], [*interactions_of(theirs), *interactions_of(other)])
    erased = erase(layout, user=None, turns=("anon-1",))
    assert ids(UserTables.of(layout).turns) == {"other-0", "other-1"}
    assert (erased.rows["turns"], erased.rows["interactions"], erased.ambiguous_turns) == (4, 3, 0)
    assert hits(layout.root, ["anon says"]) == {}


def test_turns_of_another_user_with_the_same_text_stay_and_are_counted(layout):
    theirs = dialogue("hello", follow_ups=2)
    twin = changed(theirs[0], turn_id="twin", started_at_s=500.0, finished_at_s=501.0)
    store(layout, [*theirs, twin], [])
    erased = erase(layout, user=None, turns=("hello-1",))
    assert ids(UserTables.of(layout).turns) == {"hello-0", "twin"}
    assert erased.ambiguous_turns == 2


def test_a_conversation_with_an_id_is_erased_whole(layout):
    theirs = dialogue("c", conversation_id="k1.c")
    edited = changed(theirs[1], turn_id="edit", messages=theirs[0].messages)
    other = dialogue("d", conversation_id="k1.d")
    store(layout, [*theirs, edited, *other], [])
    erase(layout, user=None, turns=("c-0",))
    assert ids(UserTables.of(layout).turns) == {"d-0", "d-1"}


def test_events_in_the_log_never_reach_a_table_and_an_open_segment_is_waited_for(layout):
    victim, ann = people(layout, (VICTIM,))[VICTIM], people(layout, ("ann",))["ann"]
    journal = JournalLog(layout.journal, segment_bytes=1 << 20, segment_s=0.5)
    for durable in [journal.append(each) for each in (*victim, *ann)]:
        durable.result(timeout=10)
    found = erase(layout, dry=True)
    assert found.events_in_log == 3
    erased = erase(layout)
    assert hits(layout.root, (VICTIM, pseudonym(layout, VICTIM))) == {}
    assert ids(UserTables.of(layout).turns) == {each.turn_id for each in ann}
    assert erased.events_in_log == 0
    journal.append(replace(victim[0], started_at_s=time.time() - 60)).result(timeout=10)
    journal.close()
    assert erase(layout, user="another user").rows["turns"] == 0
    assert ids(UserTables.of(layout).turns) == {each.turn_id for each in ann}


STEPS = {
    "a snapshot's record": (snapshot_erasure, "write_json"),
    "a snapshot's rows": (snapshot_erasure.pq, "write_table"),
    "a candidate": (derived_data, "erase_in_file"),
    "a table": (Table, "delete"),
    "files": (Table, "purge"),
    "the end": (Tombstones, "finish"),
}


@pytest.mark.parametrize("step", STEPS)
def test_an_erasure_killed_before_any_step_is_finished_by_the_next_one(layout, monkeypatch, step):
    a_run(layout)

    def killed(*arguments: object, **named: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*STEPS[step], killed)
        with pytest.raises(Killed):
            erase(layout)
    assert len(Tombstones(layout).unfinished) == 1
    erased = erase(layout)
    assert hits(layout.root, (VICTIM, pseudonym(layout, VICTIM))) == {}
    assert ids(UserTables.of(layout).turns) == {f"{name}-{n}" for name in "ab" for n in range(3)}
    assert [each.policy_version for each in erased.learned] == [3, 4]
    assert Tombstones(layout).unfinished == ()


def test_the_rest_of_a_partly_deleted_conversation_is_found_again(layout, monkeypatch):
    theirs = dialogue("anon", follow_ups=3)
    store(layout, theirs, interactions_of(theirs))
    delete = Table.delete

    def delete_named_turn_only(table: Table, ids: set[str]) -> int:
        if table.name != "turns":
            return delete(table, ids)
        delete(table, {"anon-1"})
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Table, "delete", delete_named_turn_only)
        with pytest.raises(Killed):
            erase(layout, user=None, turns=("anon-1",))
    erase(layout, user=None, turns=("anon-1",))
    assert ids(UserTables.of(layout).turns) == set()
    assert hits(layout.root, ["anon says"]) == {}


def test_an_erasure_waits_for_the_cycle_under_way(layout):
    a_run(layout)
    entered, done = threading.Event(), threading.Event()

    def cycle() -> None:
        with data_lock(layout):
            entered.set()
            time.sleep(0.5)
            finished_cycle(layout, 4, read_interactions(layout.snapshot(2)), parent=4)
        done.set()

    thread = threading.Thread(target=cycle)
    thread.start()
    entered.wait(timeout=10)
    erased = erase(layout)
    thread.join()
    assert set(erased.snapshots) == {str(layout.snapshot(2)), str(layout.snapshot(4))}
    assert hits(layout.root, (VICTIM, pseudonym(layout, VICTIM))) == {}


def test_files_of_interrupted_work_are_removed(layout):
    a_run(layout)
    for path in (
        layout.root / "snapshots" / ".c0009.partial" / "interactions.parquet",
        layout.root / "candidates" / ".v0009.partial" / "candidate.json",
        layout.candidate(3) / ".candidate.json.4711",
        layout.root / "candidates" / ".v0003.train" / "progress.jsonl",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(VICTIM)
    (layout.snapshot(2) / READY).unlink()
    assert len(erase(layout).leftovers) == 4
    assert hits(layout.root, (VICTIM, pseudonym(layout, VICTIM))) == {}


def test_the_job_asks_before_it_removes_and_its_result_holds_no_name(layout):
    a_run(layout)
    asked = erase_job(layout, "--user", VICTIM)
    assert (asked.returncode, "--yes" in asked.stderr) == (2, True)
    done = erase_job(layout, "--user", VICTIM, "--yes")
    assert done.returncode == 0
    assert json.loads(done.stdout)["rows"]["turns"] == 3
    assert VICTIM not in done.stdout + done.stderr
    assert pseudonym(layout, VICTIM) not in done.stdout + done.stderr
    assert "rollback --to 2" in " ".join(done.stderr.split())


def test_a_request_without_a_user_or_without_a_run_is_refused(layout):
    for user, turns in ((None, ()), ("", ()), ("ann", ("",))):
        with pytest.raises(ConfigError, match="name a user"):
            erase(layout, user=user, turns=turns)
    with pytest.raises(ConfigError, match="no run under"):
        erase(layout)
    assert not layout.root.exists()
