"""Compaction, checkpoints and vacuum lose no row and leave no stale file."""

import os
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from sdpo_ray.io.paths import Layout
from sdpo_ray.tables import compaction
from sdpo_ray.tables.arrow_schemas import TURN, turns_to_arrow
from sdpo_ray.tables.delta_table import Table, read_files
from tests.support.conversations import turn


def fill(table: Table, start: int, stop: int) -> None:
    """Append one turn per number: its id is the number, and so is its time in seconds."""
    for number in range(start, stop):
        assert table.append(turns_to_arrow([turn(f"t{number:03d}", at_s=float(number))]), {"log": number}) == number


def ids(table: Table, **how) -> list[str]:
    return sorted(table.read(["turn_id"], **how)["turn_id"].to_pylist())


def names(start: int, stop: int) -> list[str]:
    return [f"t{number:03d}" for number in range(start, stop)]


def data_files(layout: Layout) -> set[str]:
    return {path.name for path in Path(layout.table("turns")).glob("*.parquet")}


def test_a_table_is_maintained_when_it_is_due_and_not_before(tmp_path):
    table = Table.turns(Layout(tmp_path))
    fill(table, 1, 10)
    assert not table.maintain(every=10, keep_files_h=1)
    assert len(table.files()) == 9
    fill(table, 10, 11)
    assert table.maintain(every=10, keep_files_h=1)
    assert len(table.files()) == 1
    assert not table.maintain(every=10, keep_files_h=1)
    assert (table.num_rows, table.batch, table.position("log")) == (10, 10, 10)


def test_compaction_keeps_rows_batches_and_positions(tmp_path):
    table = Table.turns(Layout(tmp_path))
    fill(table, 1, 31)
    before = table.read([*TURN.names, "batch"]).sort_by("turn_id")
    assert table.maintain(every=2, keep_files_h=1)
    fill(table, 31, 41)
    assert table.maintain(every=2, keep_files_h=1)
    after = table.read([*TURN.names, "batch"]).sort_by("turn_id")
    assert after.slice(0, 30) == before
    assert ids(table, after=28, upto=33) == names(29, 34)
    (file,) = table.files({3})
    assert read_files([file], TURN, ["turn_id"], None).num_rows == 40


def test_a_compacted_file_holds_its_batches_one_after_the_other(tmp_path):
    table = Table.turns(Layout(tmp_path))
    fill(table, 1, 31)
    table.maintain(every=2, keep_files_h=1)
    (file,) = table.files()
    batches = pq.read_table(file, columns=["batch"])["batch"].to_pylist()
    assert batches in (sorted(batches), sorted(batches, reverse=True))


def test_row_groups_are_small_enough_to_be_skipped_by_batch(tmp_path):
    table = Table.turns(Layout(tmp_path))
    for batch in range(3):
        table.append(turns_to_arrow([turn(f"{batch}-{n}") for n in range(3000)]), {})
    table.maintain(every=1, keep_files_h=1)
    (file,) = table.files()
    metadata = pq.ParquetFile(file).metadata
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [4096, 4096, 808]


def test_positions_rows_and_batches_are_all_in_the_checkpoint(tmp_path):
    layout = Layout(tmp_path)
    table = Table.turns(layout)
    table.append(turns_to_arrow([turn("first")]), {"early": 9})
    fill(table, 2, 40)
    table.maintain(every=2, keep_files_h=1)
    log = Path(layout.table("turns")) / "_delta_log"
    (checkpoint,) = log.glob("*.checkpoint.parquet")
    # As after the log's retention: only the checkpoint and the entries after it are left.
    version = int(checkpoint.name[:20])
    for entry in log.glob("*.json"):
        if int(entry.stem) <= version:
            entry.unlink()
    again = Table.turns(layout)
    assert (again.position("early"), again.position("log"), again.batch, again.num_rows) == (9, 39, 39, 39)
    assert ids(again, after=37) == names(38, 40)
    table.refresh()
    assert table.position("early") == 9


def test_log_entries_are_removed_once_they_are_old_and_a_stale_handle_goes_on(tmp_path):
    layout = Layout(tmp_path)
    table = Table.turns(layout)
    fill(table, 1, 6)
    stale, reader = Table.turns(layout), Table.turns(layout)
    table.maintain(every=2, keep_files_h=1)
    log = Path(layout.table("turns")) / "_delta_log"
    long_ago = time.time() - 25 * 3600
    for entry in log.iterdir():
        os.utime(entry, (long_ago, long_ago))
    fill(table, 6, 11)
    table.maintain(every=2, keep_files_h=1)
    assert not (log / f"{1:020d}.json").exists()
    assert stale.append(turns_to_arrow([turn("other")]), {"log": 6}) is None
    stale.refresh()
    assert stale.append(turns_to_arrow([turn("t011")]), {"log": 11}) == 11
    reader.refresh()
    assert ids(reader) == names(1, 12)


def test_replaced_files_stay_for_readers_until_their_time_is_over(tmp_path):
    layout = Layout(tmp_path)
    table = Table.turns(layout)
    fill(table, 1, 6)
    reader, old = Table.turns(layout), data_files(layout)
    table.maintain(every=2, keep_files_h=0.5)
    assert old < data_files(layout)
    assert ids(reader) == names(1, 6)
    fill(table, 6, 8)
    table.maintain(every=2, keep_files_h=0)
    assert not old & data_files(layout)
    assert data_files(layout) == {Path(file).name for file in table.files()}
    # The reader's version is gone from the disk: it reads the newest instead.
    assert ids(reader) == names(1, 8)


def test_leftovers_of_a_killed_writer_are_not_read_and_are_removed_when_old(tmp_path):
    layout = Layout(tmp_path)
    table = Table.turns(layout)
    fill(table, 1, 4)
    left = Path(layout.table("turns")) / "part-00000-left-c000.zstd.parquet"
    left.write_bytes(Path(table.files()[0]).read_bytes())
    assert ids(table) == names(1, 4)
    table.maintain(every=2, keep_files_h=1)
    assert left.exists()
    os.utime(left, (time.time() - 2 * 3600,) * 2)
    fill(table, 4, 6)
    table.maintain(every=2, keep_files_h=1)
    assert not left.exists()
    assert ids(table) == names(1, 6)


def test_rows_expire_by_time(tmp_path):
    table = Table.turns(Layout(tmp_path))
    fill(table, 1, 11)
    # A turn takes a second: the one of batch 4 was finished at 5.
    assert table.maintain(every=2, keep_files_h=0, expire_before_s=5.0)
    assert ids(table) == names(4, 11)
    assert (table.num_rows, table.batch, table.position("log")) == (7, 10, 10)


def test_of_two_maintenances_at_once_one_does_nothing(tmp_path, monkeypatch):
    layout = Layout(tmp_path)
    table = Table.turns(layout)
    fill(table, 1, 6)
    other, commit = Table.turns(layout), compaction.commit_rows
    done = []

    def after_another(*what: object) -> None:
        if not done:
            done.append(None)
            done[0] = other.maintain(every=2, keep_files_h=1)
        commit(*what)

    monkeypatch.setattr(compaction, "commit_rows", after_another)
    assert not table.maintain(every=2, keep_files_h=1)
    assert done == [True]
    assert ids(table) == names(1, 6)


def test_of_two_compactions_at_once_one_is_committed(tmp_path, monkeypatch):
    layout = Layout(tmp_path)
    table = Table.turns(layout)
    fill(table, 1, 6)
    other, written = Table.turns(layout), compaction.rewritten
    overtaken = []

    def after_another(*what: object) -> object:
        anew = written(*what)
        if not overtaken:
            overtaken.append(None)
            fill(other, 6, 8)
            overtaken[0] = other.maintain(every=1, keep_files_h=1)
        return anew

    monkeypatch.setattr(compaction, "rewritten", after_another)
    assert table.maintain(every=1, keep_files_h=1)
    assert overtaken == [True]
    assert ids(table) == names(1, 8)
    assert table.num_rows == 7


def test_an_append_that_started_before_a_compaction_commits_after_it(tmp_path):
    layout = Layout(tmp_path)
    table = Table.turns(layout)
    fill(table, 1, 6)
    stale = Table.turns(layout)
    table.maintain(every=2, keep_files_h=0, expire_before_s=3.0)
    assert stale.append(turns_to_arrow([turn("t006")]), {"log": 6}) == 6
    assert Counter(ids(stale)) == Counter(names(2, 7))


@pytest.mark.parametrize("step", ["_expire", "_compact", "_vacuum"])
def test_a_maintenance_killed_between_steps_leaves_a_complete_table(tmp_path, monkeypatch, step):
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    layout = Layout(tmp_path)
    table = Table.turns(layout)
    fill(table, 1, 6)
    with monkeypatch.context() as patch:
        patch.setattr(compaction, step, die)
        with pytest.raises(Killed):
            table.maintain(every=2, keep_files_h=0, expire_before_s=0.0)
    again = Table.turns(layout)
    assert ids(again) == names(1, 6)
    fill(again, 6, 9)
    assert again.maintain(every=2, keep_files_h=0)
    assert (ids(again), len(again.files())) == (names(1, 9), 1)


def test_only_the_batch_and_one_time_have_statistics_after_a_compaction_too(tmp_path):
    layout = Layout(tmp_path)
    table = Table.turns(layout)
    fill(table, 1, 6)
    table.maintain(every=2, keep_files_h=0)
    actions = DeltaTable(layout.table("turns")).get_add_actions(flatten=True)
    bounded = {name.partition(".")[2] for name in actions.schema.names if name.startswith(("min.", "max."))}
    assert bounded == {"batch", "finished_at_s"}
