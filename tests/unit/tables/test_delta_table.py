"""The tables: commits with positions, reads by batch, durability."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_ray.errors import ConfigError
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Consent, Feedback, Interaction, Turn
from sdpo_ray.tables.arrow_schemas import (
    FEEDBACK,
    INTERACTION,
    PENDING,
    TURN,
    feedback_to_arrow,
    interactions_to_arrow,
    turns_from_arrow,
    turns_to_arrow,
)
from sdpo_ray.tables.delta_table import Table, read_files
from tests.support.conversations import turn


def rows(*turns: Turn) -> pa.Table:
    return turns_to_arrow(turns)


def ids(table: Table, **how) -> list[str]:
    return sorted(table.read(["turn_id"], **how)["turn_id"].to_pylist())


def directory(layout: Layout, name: str = "turns") -> Path:
    return Path(layout.table(name))


@given(st.lists(st.text(), unique=True, max_size=4), st.text(), st.none() | st.integers(-(2**63), 2**63 - 1))
@settings(deadline=None, max_examples=10)
def test_turns_come_back_from_the_table_as_they_were(tmp_path_factory, names, text, seed):
    made = [turn(name, text, response=text) for name in names]
    table = Table.turns(Layout(tmp_path_factory.mktemp("run")))
    assert table.append(rows(*made), {}) == 1
    stored = table.read()
    assert stored.schema == TURN
    assert sorted(turns_from_arrow(stored), key=lambda t: t.turn_id) == sorted(made, key=lambda t: t.turn_id)


def test_each_of_the_four_tables_holds_its_rows_and_their_batch(tmp_path):
    layout = Layout(tmp_path)
    feedback = Feedback(
        feedback_id="f", turn_id="t", tenant="a", user="", consent=Consent.TRAIN, comment="shorter", given_at_s=1.0
    )
    made = Interaction(
        interaction_id="t0",
        turn=turn("t0"),
        follow_up="shorter",
        follow_up_turn_id="t1",
        follow_up_at_s=5.0,
        conversation="c",
    )
    waiting = pa.Table.from_pylist([{"turn_id": "t0", "continuation": "k", "finished_at_s": 2.0}], schema=PENDING)
    for table, appended, schema in (
        (Table.turns(layout), rows(turn("t0")), TURN),
        (Table.feedback(layout), feedback_to_arrow([feedback]), FEEDBACK),
        (Table.pending(layout), waiting, PENDING),
        (Table.interactions(layout), interactions_to_arrow([made]), INTERACTION),
    ):
        assert table.append(appended, {"log": 1}) == 1
        assert table.read() == appended
        assert table.read().schema == schema
        assert table.read([*schema.names, "batch"])["batch"].to_pylist() == [1]
        assert table.name == directory(layout, table.name).name


def test_rows_and_position_are_committed_together_and_found_again(tmp_path):
    layout = Layout(tmp_path / "a run \u00e9")
    table = Table.turns(layout)
    assert (table.version, table.batch, table.num_rows, table.position("log")) == (0, 0, 0, None)
    assert table.read().num_rows == 0
    assert table.files() == table.files([1]) == []
    assert table.append(rows(turn("t0"), turn("t1")), {"log": 700}) == 1
    again = Table.turns(layout)
    assert (again.version, again.batch, again.num_rows) == (1, 1, 2)
    assert (again.position("log"), again.position("other")) == (700, None)
    assert ids(again) == ["t0", "t1"]


def test_a_position_can_be_committed_without_rows(tmp_path):
    table = Table.turns(Layout(tmp_path))
    assert table.append(rows(), {"log": 5}) == 1
    assert (table.position("log"), table.num_rows, table.batch, ids(table)) == (5, 0, 1, [])


def test_of_two_writers_at_once_the_second_commits_nothing_until_it_refreshes(tmp_path):
    one, other = Table.turns(Layout(tmp_path)), Table.turns(Layout(tmp_path))
    assert one.append(rows(turn("t0")), {"log": 1}) == 1
    for positions in ({"log": 1}, {"log": 2}, {"another log": 1}):
        assert other.append(rows(turn("t0")), positions) is None
    other.refresh()
    assert (ids(other), other.position("log"), other.position("another log")) == (["t0"], 1, None)
    assert other.append(rows(turn("t1")), {"log": 2}) == 2
    one.refresh()
    assert ids(one, after=1) == ["t1"]


def test_rows_are_selected_by_content_and_by_batch(tmp_path):
    table = Table.turns(Layout(tmp_path))
    for number in range(4):
        table.append(rows(turn(f"t{number}", user=f"u{number % 2}", at_s=float(number))), {})
    assert ids(table, after=2) == ["t2", "t3"]
    assert ids(table, after=1, upto=3) == ["t1", "t2"]
    assert ids(table, upto=0) == ids(table, after=4) == []
    assert ids(table, where=ds.field("user") == "u1", after=2) == ["t3"]
    assert ids(table, where=ds.field("batch").isin([1, 4])) == ["t0", "t3"]
    assert ids(table, where=ds.field("finished_at_s") >= 3.0) == ["t2", "t3"]


def test_files_of_a_batch_hold_no_other_batch_before_compaction(tmp_path):
    table = Table.turns(Layout(tmp_path))
    for number in range(4):
        table.append(rows(turn(f"t{number}")), {})
    assert len(table.files()) == 4
    two = table.files({2, 4})
    assert sorted(read_files(two, TURN, ["turn_id"], None)["turn_id"].to_pylist()) == ["t1", "t3"]
    assert read_files(two, TURN, ["turn_id"], ds.field("turn_id") == "t3")["turn_id"].to_pylist() == ["t3"]
    assert read_files([], TURN, ["turn_id"], None).num_rows == 0
    assert table.files([]) == table.files([99]) == []


def test_files_outside_the_batches_are_not_opened(tmp_path):
    table = Table.turns(Layout(tmp_path))
    table.append(rows(turn("t0", at_s=1.0)), {})
    (old,) = table.files()
    table.append(rows(turn("t1", at_s=500.0)), {})
    Path(old).write_bytes(b"no Parquet")
    assert ids(table, after=1) == ["t1"]
    assert ids(table, where=ds.field("finished_at_s") > 400.0) == ["t1"]
    with pytest.raises(pa.ArrowInvalid):
        ids(table)


def test_an_append_that_cannot_be_written_raises_and_leaves_nothing_behind(tmp_path, monkeypatch):
    table = Table.turns(Layout(tmp_path))
    monkeypatch.setattr("sdpo_ray.tables.delta_table.pause", lambda attempt: None)

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sdpo_ray.tables.delta_table.commit_rows", no_space)
        with pytest.raises(OSError, match="No space left"):
            table.append(rows(turn("t0")), {"log": 1})
    assert (table.batch, table.position("log")) == (0, None)
    assert table.append(rows(turn("t0")), {"log": 1}) == 1


def test_a_commit_that_was_made_but_reported_as_failed_is_not_repeated(tmp_path, monkeypatch):
    """An object store may report an error for a commit that it made."""
    from sdpo_ray.tables.commits import commit_rows

    table = Table.turns(Layout(tmp_path))

    def made_and_lost(*what: object) -> None:
        commit_rows(*what)
        raise OSError("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr("sdpo_ray.tables.delta_table.commit_rows", made_and_lost)
        assert table.append(rows(turn("t0")), {"log": 1}) is None
    table.refresh()
    assert (ids(table), table.position("log"), table.batch) == (["t0"], 1, 1)


def test_every_file_of_a_version_is_synced_before_sync_returns(tmp_path, monkeypatch):
    layout = Layout(tmp_path)
    table = Table.turns(layout)
    table.append(rows(turn("t0")), {})
    synced, sync = [], os.fsync

    def note(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        sync(fd)

    monkeypatch.setattr(os, "fsync", note)
    table.sync()
    on_disk = set(directory(layout).rglob("*.json")) | set(directory(layout).rglob("*.parquet"))
    directories = {directory(layout) / "_delta_log", directory(layout), tmp_path / "tables", tmp_path}
    assert set(synced) == on_disk | directories
    synced.clear()
    table.append(rows(turn("t1")), {})
    table.sync()
    assert sorted(path.suffix for path in synced if path not in directories) == [".json", ".parquet"]
    assert not on_disk & set(synced)


def test_tables_are_kept_where_the_layout_says(tmp_path):
    layout = Layout(tmp_path / "run", tables=str(tmp_path / "elsewhere"))
    Table.turns(layout).append(rows(turn("t0")), {})
    assert DeltaTable.is_deltatable(str(tmp_path / "elsewhere" / "turns"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("uri", ["file:///tmp/x", "gs://bucket/x"])
def test_a_store_that_cannot_be_read_or_synced_is_refused(tmp_path, uri):
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        Table.turns(Layout(tmp_path, tables=uri))
