"""Deletion and purge: deleted rows are in no byte of the table's directory."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import WriterProperties

from sdpo_ray.io.paths import Layout
from sdpo_ray.tables import commits, row_deletion
from sdpo_ray.tables.arrow_schemas import turns_from_arrow, turns_to_arrow
from sdpo_ray.tables.delta_table import Table
from tests.support.conversations import turn


def ids(table: Table, **how) -> list[str]:
    return sorted(table.read(["turn_id"], **how)["turn_id"].to_pylist())


def hits(directory: Path, words: list[str]) -> Counter[str]:
    """Number of files that hold each word, in their bytes or in the decoded values of their pages."""
    found: Counter[str] = Counter()
    for path in directory.rglob("*"):
        if path.is_file():
            held = [path.read_bytes(), str(path).encode()]
            if path.suffix == ".parquet":
                held.append(decoded(path))
            found.update(word for word in words if any(word.encode() in each for each in held))
    return found


def decoded(path: Path) -> bytes:
    """All values of a Parquet file in Arrow's memory layout, where strings are contiguous."""
    rows, sink = pq.read_table(path), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("compression", ["UNCOMPRESSED", "ZSTD"])
def test_after_erasure_no_byte_of_40000_rows_holds_the_erased_user(tmp_path, monkeypatch, compression):
    monkeypatch.setattr(commits, "WRITER", WriterProperties(compression=compression, max_row_group_size=4096))
    layout = Layout(tmp_path)
    table = Table.turns(layout)
    victims = [f"victim-{number:05d}" for number in range(0, 40_000, 997)]
    words = ["zebra in the attic", "vic.tim@example.org", "pseudonym-of-vic", *victims]
    gone = turn("t", "It is the zebra in the attic.", response="Write to vic.tim@example.org.", user="pseudonym-of-vic")
    two = turns_to_arrow([turn("t"), gone])
    for batch in range(40):
        numbers = range(1000 * batch, 1000 * batch + 1000)
        rows = two.take(pa.array([n % 997 == 0 for n in numbers]).cast(pa.int8()))
        names = [f"other-{n:05d}" if n % 997 else f"victim-{n:05d}" for n in numbers]
        table.append(rows.set_column(0, rows.schema.field("turn_id"), pa.array(names)), {"log": batch})
        if batch == 29:
            table.maintain(every=2, keep_files_h=24)
    directory = Path(layout.table("turns"))
    assert set(hits(directory, words)) == set(words)
    assert not any(word in path.read_text() for path in (directory / "_delta_log").glob("*.json") for word in words)

    assert table.delete(victims) == len(victims) == 41
    assert ids(table) == [f"other-{n:05d}" for n in range(40_000) if n % 997]
    assert set(hits(directory, words)) == set(words)
    table.purge()
    assert hits(directory, words) == Counter()
    again = Table.turns(layout)
    assert (again.num_rows, again.position("log")) == (40_000 - 41, 39)
    assert len(ids(again, after=29, upto=40)) == 11_000 - 11


def test_deletion_removes_rows_by_id_and_nothing_else(tmp_path):
    table = Table.turns(Layout(tmp_path))
    odd = ["it's", 'a "b"', "a\\b", "%_", "'); DROP TABLE turns; --", "\u00e9\u4e2d", "", "line\nline"]
    for batch in range(3):
        made = [turn(f"{batch}{name}", at_s=float(batch)) for name in odd]
        table.append(turns_to_arrow(made), {"log": batch})
    gone = [f"1{name}" for name in odd] + ["0it's", "nobody"]
    assert table.delete(gone) == 9
    assert ids(table) == sorted(f"{batch}{name}" for batch in (0, 2) for name in odd if f"{batch}{name}" != "0it's")
    assert (table.num_rows, table.batch, table.position("log")) == (15, 3, 2)
    assert ids(table, after=1, upto=2) == []
    assert len(table.files()) == 2
    assert table.delete(["nobody"]) == table.delete([]) == 0


def test_other_rows_of_a_rewritten_file_stay_as_they_were(tmp_path):
    table = Table.turns(Layout(tmp_path))
    made = [turn(f"t{n}", f"question {n}", user=f"u{n}", at_s=float(n)) for n in range(5)]
    table.append(turns_to_arrow(made), {})
    table.delete(["t2"])
    assert turns_from_arrow(table.read()) == [each for each in made if each.turn_id != "t2"]
    assert ids(table, after=0, upto=1) == ["t0", "t1", "t3", "t4"]
    assert table.append(turns_to_arrow([turn("t2")]), {}) == 2
    assert ids(table, after=1) == ["t2"]


def test_deletion_from_many_files_takes_several_commits(tmp_path, monkeypatch):
    monkeypatch.setattr(row_deletion, "_FILES_PER_COMMIT", 2)
    table = Table.turns(Layout(tmp_path))
    for batch in range(5):
        table.append(turns_to_arrow([turn(f"a{batch}"), turn(f"b{batch}")]), {})
    version = table.version
    assert table.delete([f"a{batch}" for batch in range(5)]) == 5
    assert table.version == version + 3
    assert ids(table) == [f"b{batch}" for batch in range(5)]


def test_the_delta_log_does_not_name_deleted_rows(tmp_path):
    layout = Layout(tmp_path)
    table = Table.turns(layout)
    table.append(turns_to_arrow([turn("secret-id", user="secret-user"), turn("t")]), {})
    table.delete(["secret-id"])
    table.maintain(every=1, keep_files_h=24)
    for entry in (Path(layout.table("turns")) / "_delta_log").iterdir():
        assert b"secret" not in entry.read_bytes()


def test_user_text_is_in_no_log_entry_checkpoint_or_statistic(tmp_path):
    layout = Layout(tmp_path)
    table = Table.turns(layout)
    secret = "zebra-4711"
    words = (f"my password is {secret}", f"never tell {secret}")
    for batch in range(4):
        made = turn(f"t{batch}", words[0], response=words[1], user=secret, conversation_id=secret)
        table.append(turns_to_arrow([made, turn(f"{secret}-{batch}")]), {"log": batch})
    log = Path(layout.table("turns")) / "_delta_log"

    def spelled() -> Counter[str]:
        return hits(log, [secret])

    assert spelled() == Counter()
    table.delete([f"{secret}-1"])
    assert spelled() == Counter()
    table.maintain(every=1, keep_files_h=0, expire_before_s=1.0)
    assert list(log.glob("*.checkpoint.parquet"))
    assert spelled() == Counter()
    table.purge()
    assert spelled() == Counter()


def test_a_purge_removes_leftovers_of_a_killed_writer_of_any_age(tmp_path):
    layout = Layout(tmp_path)
    table = Table.turns(layout)
    table.append(turns_to_arrow([turn("t0")]), {"log": 1})
    directory = Path(layout.table("turns"))
    for name in ("part-00000-left-c000.zstd.parquet", "part-00000-half-c000.zstd.parquet#1"):
        (directory / name).write_bytes(b"zebra")
    table.purge()
    assert {path.name for path in directory.iterdir()} == {Path(table.files()[0]).name, "_delta_log"}
    assert (ids(table), table.position("log")) == (["t0"], 1)


def test_a_writer_in_progress_during_a_purge_cannot_commit_a_purged_file(tmp_path, monkeypatch):
    """The writer's file was written, and deleted by the purge, before the commit."""
    layout = Layout(tmp_path)
    table = Table.turns(layout)
    table.append(turns_to_arrow([turn("t0")]), {"log": 1})
    slow, pending = Table.turns(layout), []
    names = row_deletion.TableLocation.names

    def with_one_under_way(place: row_deletion.TableLocation) -> list[str]:
        # During the purge: the writer opened the table before, and its file exists.
        found = names(place)
        if not pending:
            pending.append("part-00000-under-way-c000.zstd.parquet")
            (Path(layout.table("turns")) / pending[0]).write_bytes(b"not committed yet")
            found.append(pending[0])
        return found

    monkeypatch.setattr(row_deletion.TableLocation, "names", with_one_under_way)
    table.purge()
    assert not (Path(layout.table("turns")) / pending[0]).exists()
    assert slow.append(turns_to_arrow([turn("t1")]), {"log": 2}) is None
    slow.refresh()
    assert slow.append(turns_to_arrow([turn("t1")]), {"log": 2}) is not None
    assert ids(Table.turns(layout)) == ["t0", "t1"]


def test_a_deletion_that_conflicts_with_another_rewrite_is_repeated_on_top_of_it(tmp_path, monkeypatch):
    layout = Layout(tmp_path)
    table, other = Table.turns(layout), Table.turns(layout)
    table.append(turns_to_arrow([turn(f"t{n}") for n in range(4)]), {"log": 1})
    without, overtaken = row_deletion.rewritten, []

    def after_another(*what: object, **how: object) -> object:
        anew = without(*what, **how)
        if not overtaken:
            overtaken.append(True)
            other.maintain(every=1, keep_files_h=0)
            other.delete(["t3"])
            other.append(turns_to_arrow([turn("t4")]), {"log": 2})
        return anew

    monkeypatch.setattr(row_deletion, "rewritten", after_another)
    assert table.delete(["t1"]) == 1
    assert ids(table) == ["t0", "t2", "t4"]


def test_a_deletion_is_not_hindered_by_appends(tmp_path, monkeypatch):
    layout = Layout(tmp_path)
    table, other = Table.turns(layout), Table.turns(layout)
    table.append(turns_to_arrow([turn("t0"), turn("t1")]), {"log": 0})
    without, tries = row_deletion.rewritten, []

    def after_an_append(*what: object, **how: object) -> object:
        anew = without(*what, **how)
        tries.append(None)
        other.refresh()
        assert other.append(turns_to_arrow([turn(f"new-{len(tries)}")]), {"log": len(tries)}) is not None
        return anew

    monkeypatch.setattr(row_deletion, "rewritten", after_an_append)
    assert table.delete(["t1"]) == 1
    assert len(tries) == 1
    assert ids(table) == ["new-1", "t0"]


def test_an_append_that_started_before_a_deletion_commits_after_it(tmp_path):
    layout = Layout(tmp_path)
    table = Table.turns(layout)
    table.append(turns_to_arrow([turn("t0"), turn("t1")]), {"log": 0})
    stale = Table.turns(layout)
    table.delete(["t0"])
    assert stale.append(turns_to_arrow([turn("t2")]), {"log": 1}) == 2
    assert ids(stale) == ["t1", "t2"]
