import math
import os
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from conversations import dialogue, turn
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_ray.capture.journal import Journal
from sdpo_ray.capture.segments import SegmentLog, segments
from sdpo_ray.curate.sessionize import continuation_key, conversation, parent_key
from sdpo_ray.curate.ship import ship
from sdpo_ray.curate.store import FILE, TURN_KEYS, Table
from sdpo_ray.errors import CorruptJournal, DataError
from sdpo_ray.records import Consent, FinishReason, Interaction, Message, Role, Sampling, ToolCall, Turn, VersionSpan
from sdpo_ray.storage import Layout
from sdpo_ray.tables import (
    TURN,
    interactions_from_arrow,
    interactions_to_arrow,
    read_interactions,
    rows_digest,
    turns_from_arrow,
    turns_to_arrow,
    write_interactions,
)


def rows(*turns: Turn) -> pa.Table:
    table = turns_to_arrow(turns)
    for name in TURN_KEYS.names:
        table = table.append_column(name, pa.array([f"{name} {t.turn_id}" for t in turns], pa.string()))
    return table


def ids(table: Table, **how) -> list[str]:
    return sorted(table.read(["turn_id"], **how)["turn_id"].to_pylist())


def capture(layout: Layout, *turns: Turn) -> None:
    journal = Journal(layout.journal, segment_bytes=2000)
    for each in turns:
        journal.append(each).result(timeout=10)
    journal.close()


ids_of_tokens = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4)


@st.composite
def any_turn(draw: st.DrawFn) -> Turn:
    text_only = draw(st.booleans())
    response_ids = () if text_only else tuple(draw(ids_of_tokens))
    logprobs = st.floats(width=64)
    calls = st.lists(st.builds(ToolCall, call_id=st.text(), name=st.text(), arguments=st.text()), max_size=2)
    before = draw(
        st.lists(
            st.builds(
                Message,
                role=st.sampled_from(Role),
                content=st.text(),
                tool_calls=calls.map(tuple),
                tool_call_id=st.text(),
            )
        )
    )
    return Turn(
        turn_id=draw(st.text()),
        tenant=draw(st.text()),
        user=draw(st.text()),
        conversation_id=draw(st.text()),
        consent=draw(st.sampled_from(Consent)),
        messages=(*before, Message(role=Role.USER, content=draw(st.text()))),
        tools=draw(st.text()),
        template_kwargs=draw(st.text()),
        response=draw(st.text()),
        prompt_ids=() if text_only else tuple(draw(ids_of_tokens)),
        response_ids=response_ids,
        response_logprobs=tuple(draw(logprobs) for _ in response_ids),
        version_spans=tuple(
            VersionSpan(policy_version=draw(st.integers(0, 2**31 - 1)), start=0, end=1)
            for _ in range(0 if text_only else draw(st.integers(1, 3)))
        ),
        finish_reason=draw(st.sampled_from(FinishReason)),
        sampling=Sampling(
            temperature=draw(st.floats(0, 2)),
            top_p=draw(st.floats(0, 1)),
            top_k=draw(st.integers(0, 2**62)),
            max_tokens=draw(st.integers(0, 2**62)),
            seed=draw(st.none() | st.integers(-(2**63), 2**63 - 1)),
        ),
        started_at_s=draw(st.floats(0, 1e12)),
        finished_at_s=draw(st.floats(0, 1e12)),
    )


def same(one: Turn, other: Turn) -> bool:
    """Equal, where NaN equals NaN."""
    pairs = zip(one.response_logprobs, other.response_logprobs, strict=True)
    alike = all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs)
    return alike and replace(one, response_logprobs=other.response_logprobs) == other


@given(st.lists(any_turn(), max_size=4))
@settings(deadline=None, max_examples=60)
def test_a_turn_comes_back_from_arrow_as_it_was(turns):
    table = turns_to_arrow(turns)
    assert table.schema == TURN
    assert all(map(same, turns_from_arrow(table), turns))
    assert table.num_rows == len(turns)


@given(any_turn(), st.text(), st.text(), st.floats(0, 1e12))
@settings(deadline=None, max_examples=30)
def test_an_interaction_comes_back_from_arrow_as_it_was(answered, follow_up, name, at_s):
    made = Interaction(
        interaction_id=answered.turn_id,
        turn=replace(answered, response_logprobs=tuple(-0.5 for _ in answered.response_ids)),
        follow_up=follow_up,
        follow_up_turn_id=name,
        follow_up_at_s=at_s,
        conversation="c",
    )
    assert interactions_from_arrow(interactions_to_arrow([made])) == [made]


@given(any_turn())
@settings(deadline=None, max_examples=10)
def test_a_turn_comes_back_from_the_table_as_it_was(tmp_path_factory, made):
    table = Table.turns(Layout(tmp_path_factory.mktemp("run")))
    assert table.append(rows(made), {})
    assert same(turns_from_arrow(table.read())[0], made)


def test_a_value_that_a_row_cannot_hold_is_refused():
    with pytest.raises(DataError, match="does not fit"):
        turns_to_arrow([turn("t0", prompt_ids=(2**40,))])


def test_a_row_that_contradicts_itself_is_refused():
    table = turns_to_arrow([turn("t0")])
    broken = table.set_column(
        TURN.get_field_index("response_ids"), "response_ids", pa.array([[1]], pa.list_(pa.int32()))
    )
    with pytest.raises(DataError, match="1 response ids, 2 log-probs"):
        turns_from_arrow(broken)


def test_a_snapshot_is_read_back_in_its_order_and_its_digest_depends_on_it(tmp_path):
    made = [
        Interaction(
            interaction_id=name,
            turn=turn(name),
            follow_up="shorter",
            follow_up_turn_id="f",
            follow_up_at_s=1.0,
            conversation=conversation(turn(name)),
        )
        for name in ("b", "a", "c")
    ]
    digest = write_interactions(tmp_path, made)
    assert read_interactions(tmp_path) == made
    assert digest == rows_digest(read_interactions(tmp_path))
    assert digest != rows_digest(sorted(made, key=lambda each: each.interaction_id))


def test_rows_and_position_are_committed_together_and_found_again(tmp_path):
    layout = Layout(tmp_path / "a run \u00e9")
    table = Table.turns(layout)
    assert (table.version, table.num_rows, table.position("log")) == (0, 0, None)
    assert table.append(rows(turn("t0"), turn("t1")), {"log": 700})
    again = Table.turns(layout)
    assert (again.version, again.num_rows, again.position("log"), again.position("other")) == (1, 2, 700, None)
    assert ids(again) == ["t0", "t1"]


def test_a_position_can_be_committed_without_rows(tmp_path):
    table = Table.turns(Layout(tmp_path))
    assert table.append(rows(), {"log": 5})
    assert (table.position("log"), table.num_rows, ids(table)) == (5, 0, [])


def test_of_two_writers_of_one_position_the_second_commits_nothing(tmp_path):
    one, other = Table.turns(Layout(tmp_path)), Table.turns(Layout(tmp_path))
    assert one.append(rows(turn("t0")), {"log": 1})
    for position in (1, 2):
        assert not other.append(rows(turn("t0")), {"log": position})
    other.refresh()
    assert ids(other) == ["t0"]
    assert other.append(rows(turn("t1")), {"log": 2})


def test_writers_of_different_positions_do_not_hinder_each_other(tmp_path):
    one, other = Table.turns(Layout(tmp_path)), Table.turns(Layout(tmp_path))
    assert one.append(rows(turn("t0")), {"a": 1})
    assert other.append(rows(turn("t1")), {"b": 1})
    assert ids(other) == ["t0", "t1"]


def test_rows_are_found_by_what_they_hold_and_by_when_they_came(tmp_path):
    table = Table.turns(Layout(tmp_path))
    for name in ("t0", "t1", "t2"):
        table.append(rows(turn(name)), {})
    assert ids(table, since=1) == ["t1", "t2"]
    assert ids(table, since=3) == []
    assert ids(table, where=ds.field("parent_key") == "parent_key t1") == ["t1"]
    files = table.read(["turn_id", FILE])
    assert all(Path(name).exists() for name in files[FILE].to_pylist())


def test_positions_and_rows_outlive_the_checkpoints_of_a_long_log(tmp_path):
    table = Table.turns(Layout(tmp_path))
    assert table.append(rows(turn("first")), {"early": 9})
    for n in range(110):
        assert table.append(rows(turn(f"t{n:03d}")), {"late": n})
    assert list((Layout(tmp_path).turns / "_delta_log").glob("*.checkpoint.parquet"))
    again = Table.turns(Layout(tmp_path))
    assert (again.position("early"), again.position("late"), again.num_rows) == (9, 109, 111)
    assert ids(again, since=109) == ["t108", "t109"]


def test_every_file_of_a_version_is_synced_before_sync_returns(tmp_path, monkeypatch):
    table = Table.turns(Layout(tmp_path))
    table.append(rows(turn("t0")), {})
    synced, sync = [], os.fsync

    def note(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        sync(fd)

    monkeypatch.setattr(os, "fsync", note)
    table.sync()
    on_disk = set(Layout(tmp_path).turns.rglob("*.json")) | set(Layout(tmp_path).turns.rglob("*.parquet"))
    assert on_disk < set(synced)
    synced.clear()
    table.append(rows(turn("t1")), {})
    table.sync()
    assert {path.suffix for path in synced} == {".json", ".parquet", ""}
    assert not on_disk & set(synced)


def test_the_log_of_a_table_holds_no_user_text(tmp_path):
    secret = "zebra-4711"
    made = turn("t0", f"my password is {secret}", response=f"never tell {secret}", user=secret, conversation_id=secret)
    table = Table.turns(Layout(tmp_path))
    table.append(rows(made), {"log": 1})
    logs = list((Layout(tmp_path).turns / "_delta_log").iterdir())
    assert logs
    assert not any(secret.encode() in log.read_bytes() for log in logs)


def test_a_journal_is_shipped_once_and_then_removed(tmp_path):
    layout = Layout(tmp_path)
    turns = dialogue("ann", follow_ups=5)
    capture(layout, *turns)
    table, log = Table.turns(layout), SegmentLog(layout.journal)
    assert ship(log, table).num_turns == 6
    assert ship(log, table).num_turns == 0
    assert segments(layout.journal) == []
    stored = table.read()
    assert sorted(turns_from_arrow(stored), key=lambda t: t.turn_id) == turns
    keys = dict(zip(stored["turn_id"].to_pylist(), stored["continuation_key"].to_pylist(), strict=True))
    assert keys == {t.turn_id: continuation_key(t) for t in turns}
    assert set(stored["parent_key"].to_pylist()) == {parent_key(t) for t in turns}


def test_a_growing_segment_is_shipped_bit_by_bit_and_kept_while_it_is_written(tmp_path):
    layout = Layout(tmp_path)
    table, log = Table.turns(layout), SegmentLog(layout.journal)
    assert ship(log, table).num_turns == 0
    journal = Journal(layout.journal, segment_bytes=1 << 20)
    for n in range(3):
        journal.append(turn(f"t{n}")).result(timeout=10)
        assert ship(log, table).num_turns == 1
        assert len(segments(layout.journal)) == 1
    journal.close()
    assert ship(log, table).num_turns == 0
    assert segments(layout.journal) == []
    assert ids(table) == ["t0", "t1", "t2"]


def test_a_turn_that_comes_twice_is_kept_once_and_counted(tmp_path):
    layout = Layout(tmp_path)
    table, log = Table.turns(layout), SegmentLog(layout.journal)
    capture(layout, turn("t0"), turn("t1"), turn("t0", response="another"))
    first = ship(log, table)
    assert (first.num_turns, first.refused) == (2, Counter(duplicate_turn=1))
    capture(layout, turn("t1"), turn("t2"))
    second = ship(log, table)
    assert (second.num_turns, second.refused) == (1, Counter(duplicate_turn=1))
    assert ids(table) == ["t0", "t1", "t2"]
    assert turns_from_arrow(table.read(where=ds.field("turn_id") == "t0")) == [turn("t0")]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", ["before the commit", "after the commit", "after the sync"])
def test_a_shipper_killed_between_steps_loses_and_repeats_nothing(tmp_path, monkeypatch, step):
    layout = Layout(tmp_path)
    capture(layout, *dialogue("ann", follow_ups=5))
    log = SegmentLog(layout.journal)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        match step:
            case "before the commit":
                patch.setattr(Table, "append", die)
            case "after the commit":
                patch.setattr(Table, "sync", die)
            case "after the sync":
                patch.setattr(SegmentLog, "truncate", die)
        with pytest.raises(Killed):
            ship(log, Table.turns(layout))
    assert len(segments(layout.journal)) > 1
    table = Table.turns(layout)
    ship(log, table)
    assert ids(table) == sorted(t.turn_id for t in dialogue("ann", follow_ups=5))
    assert segments(layout.journal) == []


def test_a_shipper_overtaken_by_another_looks_again(tmp_path, monkeypatch):
    layout = Layout(tmp_path)
    capture(layout, turn("t0"), turn("t1"))
    log, table = SegmentLog(layout.journal), Table.turns(layout)
    append, overtaken = Table.append, []

    def after_another(self: Table, *what: object) -> bool:
        if not overtaken:
            overtaken.append(True)
            assert ship(log, Table.turns(layout)).num_turns == 2
        return append(self, *what)

    monkeypatch.setattr(Table, "append", after_another)
    assert ship(log, table).num_turns == 0
    assert ids(table) == ["t0", "t1"]


def test_shippers_of_two_logs_do_not_both_store_a_turn_that_is_in_both(tmp_path, monkeypatch):
    layout, elsewhere = Layout(tmp_path), Layout(tmp_path / "elsewhere")
    capture(layout, turn("t0"), turn("t1"))
    capture(elsewhere, turn("t0"), turn("t2"))
    append, overtaken = Table.append, []

    def after_another(self: Table, *what: object) -> bool:
        if not overtaken:
            overtaken.append(True)
            assert ship(SegmentLog(elsewhere.journal), Table.turns(layout)).num_turns == 2
        return append(self, *what)

    monkeypatch.setattr(Table, "append", after_another)
    shipped = ship(SegmentLog(layout.journal), Table.turns(layout))
    assert (shipped.num_turns, shipped.refused) == (1, Counter(duplicate_turn=1))
    assert ids(Table.turns(layout)) == ["t0", "t1", "t2"]


def test_shippers_at_once_store_every_turn_once(tmp_path):
    layout = Layout(tmp_path)
    Table.turns(layout)
    shipped: list[int] = []
    stop = threading.Event()

    def work() -> None:
        table, log = Table.turns(layout), SegmentLog(layout.journal)
        while not stop.is_set():
            shipped.append(ship(log, table).num_turns)
        shipped.append(ship(log, table).num_turns)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    names = [f"t{n:03d}" for n in range(60)]
    for start in range(0, 60, 10):
        capture(layout, *(turn(name) for name in names[start : start + 10]))
    stop.set()
    for worker in workers:
        worker.join()
    assert ids(Table.turns(layout)) == names
    assert sum(shipped) == 60


def test_a_corrupt_journal_stops_shipping_and_stays(tmp_path):
    layout = Layout(tmp_path)
    journal = Journal(layout.journal, segment_bytes=1 << 20)
    for n in range(3):
        journal.append(turn(f"t{n}")).result(timeout=10)
    journal.close()
    (path,) = segments(layout.journal)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptJournal):
        ship(SegmentLog(layout.journal), Table.turns(layout))
    assert path.exists()


def test_a_large_backlog_is_shipped_in_bounded_commits(tmp_path, monkeypatch):
    monkeypatch.setattr("sdpo_ray.curate.ship._MAX_TURNS", 4)
    layout = Layout(tmp_path)
    capture(layout, *(turn(f"t{n:02d}", "q" * 300) for n in range(20)))
    table = Table.turns(layout)
    assert ship(SegmentLog(layout.journal), table).num_turns == 20
    assert table.version > 2
    assert len(ids(table)) == 20
