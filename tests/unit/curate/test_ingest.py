"""Ingest into real Delta tables, from an event log in memory and, at the end, from a real journal."""

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_ray.curate.ingest import Ingested, ingest
from sdpo_ray.errors import CorruptLog, LostEvents
from sdpo_ray.eventlog.journal.log import JournalLog
from sdpo_ray.eventlog.protocol import EventLog
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Consent, Event, Feedback, Turn
from sdpo_ray.tables.arrow_schemas import feedback_from_arrow, turns_from_arrow
from sdpo_ray.tables.delta_table import Table
from tests.support.conversations import dialogue, turn
from tests.support.memory_event_log import MemoryLog


def given_on(turn_id: str, name: str = "f0", **changes: object) -> Feedback:
    fields = {"tenant": "default", "user": "", "consent": Consent.TRAIN, "comment": "no", "given_at_s": 200.0}
    return Feedback(feedback_id=name, turn_id=turn_id, **fields | changes)  # type: ignore[arg-type]


class RunTables:
    """The two tables of one run, and an ingest into them."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.turns, self.feedback = Table.turns(self.layout), Table.feedback(self.layout)
        self.batch_sizes: list[int] = []

    def ingest(
        self,
        log: EventLog,
        *,
        max_turns: int = 1000,
        max_bytes: int = 1 << 20,
        erased: Callable[[Event], bool] = lambda event: False,
    ) -> Ingested:
        return ingest(
            log,
            self.turns,
            self.feedback,
            max_turns=max_turns,
            max_bytes=max_bytes,
            erased=erased,
            on_turns=self.batch_sizes.append,
        )

    @property
    def stored(self) -> list[Turn]:
        """As a new process reads them, sorted by id; asserts that each is there once."""
        found = sorted(turns_from_arrow(Table.turns(self.layout).read()), key=lambda each: each.turn_id)
        assert len({each.turn_id for each in found}) == len(found)
        return found

    @property
    def ids(self) -> list[str]:
        return [each.turn_id for each in self.stored]

    @property
    def stored_feedback(self) -> list[Feedback]:
        return sorted(feedback_from_arrow(Table.feedback(self.layout).read()), key=lambda each: each.feedback_id)


@pytest.fixture
def tables(tmp_path: Path) -> RunTables:
    return RunTables(tmp_path)


def test_a_log_is_ingested_once_word_for_word_and_then_truncated(tables: RunTables):
    log, turns, given = MemoryLog(), dialogue("ann", follow_ups=5), given_on("ann-2")
    log.put(*turns[:3], given, *turns[3:])
    assert tables.ingest(log) == Ingested(num_turns=6, num_feedback=1, refused=Counter())
    assert (tables.stored, tables.stored_feedback, tables.batch_sizes) == (turns, [given], [6])
    assert (log.num_events, tables.turns.position("p0")) == (0, 7)
    assert tables.ingest(log) == Ingested(num_turns=0, num_feedback=0, refused=Counter())
    assert tables.ids == [each.turn_id for each in turns]


def test_an_empty_log_costs_no_commit(tables: RunTables):
    before = tables.turns.version
    assert tables.ingest(MemoryLog(partitions=0)).num_turns == 0
    assert tables.ingest(MemoryLog()).num_turns == 0
    assert tables.turns.version == before


def test_a_partition_that_appears_later_is_read_from_its_beginning(tables: RunTables):
    log = MemoryLog()
    log.put(turn("t0"))
    tables.ingest(log)
    log.put(turn("t1"), partition="later")
    log.put(turn("t2"))
    assert tables.ingest(log).num_turns == 2
    assert tables.ids == ["t0", "t1", "t2"]
    assert (tables.turns.position("p0"), tables.turns.position("later")) == (2, 1)


def test_a_large_backlog_is_ingested_in_bounded_commits_over_all_partitions(tables: RunTables):
    log = MemoryLog(partitions=3)
    for n in range(20):
        log.put(turn(f"t{n:02d}"), partition=f"p{n % 3}")
    assert tables.ingest(log, max_turns=6).num_turns == 20
    assert tables.batch_sizes == [6, 6, 6, 2]
    assert len(tables.ids) == 20
    log.put(*(turn(f"u{n}") for n in range(5)))
    tables.ingest(log, max_bytes=2)
    assert tables.batch_sizes[4:] == [2, 2, 1]


def test_an_ingest_ends_although_events_are_written_meanwhile(tables: RunTables):
    log = MemoryLog()
    log.put(*(turn(f"t{n}") for n in range(4)))

    def busy(event: Event) -> bool:
        """For each event that is read, write another one to another partition."""
        log.put(turn(f"{event.turn_id}-echo"), partition="busy")
        return False

    ingested = tables.ingest(log, max_turns=2, erased=busy)
    assert ingested.num_turns >= 4
    assert {f"t{n}" for n in range(4)} <= set(tables.ids)
    assert log.num_events > 0


def test_a_turn_that_is_delivered_twice_is_kept_once_and_counted(tables: RunTables):
    log = MemoryLog()
    log.put(turn("t0"), turn("t1"), turn("t0", response="another"))
    log.put(turn("t1"), partition="replayed")
    ingested = tables.ingest(log, max_turns=2)
    assert (ingested.num_turns, ingested.refused) == (2, Counter(duplicate_turn=2))
    log.put(turn("t1"), turn("t2"))
    ingested = tables.ingest(log)
    assert (ingested.num_turns, ingested.refused) == (1, Counter(duplicate_turn=1))
    assert tables.stored == [turn("t0"), turn("t1"), turn("t2")]


def test_feedback_that_is_sent_twice_is_stored_once_and_not_counted(tables: RunTables):
    log = MemoryLog()
    log.put(given_on("t0"), given_on("t0", given_at_s=300.0), given_on("t0", "f1", comment="", thumb="up"))
    assert tables.ingest(log) == Ingested(num_turns=0, num_feedback=2, refused=Counter())
    log.put(given_on("t0"))
    assert tables.ingest(log) == Ingested(num_turns=0, num_feedback=0, refused=Counter())
    assert [(each.feedback_id, each.given_at_s) for each in tables.stored_feedback] == [("f0", 200.0), ("f1", 200.0)]


def test_feedback_may_come_before_its_turn(tables: RunTables):
    log = MemoryLog()
    log.put(given_on("t0"))
    tables.ingest(log)
    log.put(turn("t0"))
    assert tables.ingest(log).num_turns == 1
    assert len(tables.stored_feedback) == 1


def test_events_of_an_erased_user_are_not_stored_and_are_counted(tables: RunTables):
    log = MemoryLog()
    log.put(
        turn("t0", user="ann"), turn("t1", user="bob"), given_on("t1", user="ann"), given_on("t1", "f1", user="bob")
    )
    ingested = tables.ingest(log, erased=lambda event: event.user == "ann")
    assert ingested == Ingested(num_turns=1, num_feedback=1, refused=Counter(erased=2))
    assert (tables.ids, [each.feedback_id for each in tables.stored_feedback]) == (["t1"], ["f1"])
    assert log.num_events == 0


def test_a_log_of_duplicates_alone_is_truncated_too(tables: RunTables):
    log = MemoryLog()
    log.put(turn("t0"), turn("t0"))
    tables.ingest(log)
    log.put(turn("t0"))
    assert tables.ingest(log).num_turns == 0
    assert (tables.turns.position("p0"), log.num_events, tables.turns.num_rows) == (3, 0, 1)


def test_lost_events_stop_everything_and_nothing_is_truncated(tables: RunTables):
    log = MemoryLog(partitions=2)
    log.put(turn("t0"))
    tables.ingest(log)
    log.put(*(turn(f"t{n}") for n in range(1, 5)))
    log.retention("p0", 2)
    log.truncated.clear()
    with pytest.raises(LostEvents, match="begins at 3, not at 1"):
        tables.ingest(log)
    assert (tables.ids, log.truncated) == (["t0"], {})


class Killed(BaseException):
    """Stands for the end of the process."""


def die(*_: object, **__: object) -> None:
    raise Killed


def test_the_log_is_truncated_only_when_both_tables_are_on_disk(tables: RunTables, monkeypatch: pytest.MonkeyPatch):
    log, order = MemoryLog(), []
    log.put(turn("t0"), given_on("t0"))
    sync, truncate = Table.sync, log.truncate
    monkeypatch.setattr(Table, "sync", lambda self: (order.append(self.name), sync(self)))
    monkeypatch.setattr(log, "truncate", lambda upto: (order.append(upto), truncate(upto)))
    tables.ingest(log)
    assert order == ["feedback", "turns", {"p0": 2}]


@pytest.mark.parametrize("step", ["feedback", "between", "turns", "sync of feedback", "sync of turns", "truncate"])
def test_an_ingest_killed_between_any_two_steps_loses_and_repeats_nothing(
    tables: RunTables, monkeypatch: pytest.MonkeyPatch, step: str
):
    log, turns = MemoryLog(partitions=2), dialogue("ann", follow_ups=5)
    log.put(*turns[:3], given_on("ann-0"))
    log.put(*turns[3:], given_on("ann-0", "f1"), partition="p1")
    append, sync = Table.append, Table.sync

    def die_in_append(self: Table, *what: object) -> int | None:
        if self.name == step:
            raise Killed
        batch: int | None = append(self, *what)  # type: ignore[arg-type]
        if self.name == "feedback" and step == "between":
            raise Killed
        return batch

    def die_in_sync(self: Table) -> None:
        sync(self)
        if step == f"sync of {self.name}":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Table, "append", die_in_append)
        patch.setattr(Table, "sync", die_in_sync)
        if step == "truncate":
            patch.setattr(log, "truncate", die)
        with pytest.raises(Killed):
            tables.ingest(log, max_turns=5)
    again = RunTables(tables.layout.root)
    assert again.ingest(log, max_turns=5).refused == Counter()
    assert (again.stored, [each.feedback_id for each in again.stored_feedback]) == (turns, ["f0", "f1"])
    assert log.num_events == 0


def overtaken_by(log: EventLog, tables: RunTables, table: str, monkeypatch: pytest.MonkeyPatch) -> list[Ingested]:
    """Before the first append to `table`, another process ingests `log`."""
    append, others = Table.append, []

    def after_another(self: Table, *what: object) -> int | None:
        if self.name == table and not others:
            others.append(Ingested(num_turns=0, num_feedback=0, refused=Counter()))
            others[0] = RunTables(tables.layout.root).ingest(log)
        return append(self, *what)  # type: ignore[arg-type,no-any-return]

    monkeypatch.setattr(Table, "append", after_another)
    return others


@pytest.mark.parametrize("table", ["feedback", "turns"])
def test_an_ingest_overtaken_by_another_reads_again(tables: RunTables, monkeypatch: pytest.MonkeyPatch, table: str):
    log = MemoryLog()
    log.put(turn("t0"), turn("t1"), given_on("t1"))
    monkeypatch.setattr(log, "truncate", lambda upto: None)
    others = overtaken_by(log, tables, table, monkeypatch)
    mine = tables.ingest(log)
    assert (mine.num_turns + others[0].num_turns, mine.num_feedback + others[0].num_feedback) == (2, 1)
    assert (mine.refused, others[0].refused) == (Counter(), Counter())
    assert (tables.ids, len(tables.stored_feedback)) == (["t0", "t1"], 1)


def test_events_that_another_ingest_stored_and_truncated_in_between_are_not_lost(
    tables: RunTables, monkeypatch: pytest.MonkeyPatch
):
    log = MemoryLog()
    log.put(turn("t0"), turn("t1"))
    poll, others = log.poll, []

    def after_another(after: dict[str, int], **limits: int) -> object:
        if not others:
            others.append(None)
            others[0] = RunTables(tables.layout.root).ingest(log)
        return poll(after, **limits)

    monkeypatch.setattr(log, "poll", after_another)
    assert tables.ingest(log) == Ingested(num_turns=0, num_feedback=0, refused=Counter())
    assert (tables.ids, others[0].num_turns) == (["t0", "t1"], 2)


def test_a_partition_that_another_ingest_stored_and_removed_counts_as_finished(
    tables: RunTables, monkeypatch: pytest.MonkeyPatch
):
    log = MemoryLog(partitions=2)
    log.put(*(turn(f"t{n}") for n in range(4)))
    log.put(turn("u0"), partition="p1")

    def and_remove(upto: dict[str, int]) -> None:
        if "p1" in log.partitions():
            log.remove("p1")

    monkeypatch.setattr(log, "truncate", and_remove)
    overtaken_by(log, tables, "turns", monkeypatch)
    tables.ingest(log, max_turns=2)
    assert tables.ids == ["t0", "t1", "t2", "t3", "u0"]


def test_ingests_of_two_logs_do_not_both_store_a_turn_that_is_in_both(
    tables: RunTables, monkeypatch: pytest.MonkeyPatch
):
    here, elsewhere = MemoryLog(partitions=0), MemoryLog(partitions=0)
    here.put(turn("t0"), turn("t1"), partition="here")
    elsewhere.put(turn("t0"), turn("t2"), partition="elsewhere")
    others = overtaken_by(elsewhere, tables, "turns", monkeypatch)
    mine = tables.ingest(here)
    assert (mine.num_turns, mine.refused, others[0].num_turns) == (1, Counter(duplicate_turn=1), 2)
    assert tables.ids == ["t0", "t1", "t2"]


def write(layout: Layout, *events: Event, segment_bytes: int = 2000) -> None:
    journal = JournalLog(layout.journal, segment_bytes=segment_bytes)
    for each in events:
        journal.append(each).result(timeout=10)
    journal.close()


def on_disk(layout: Layout) -> list[Path]:
    return [path for path in layout.journal.rglob("*") if path.is_file()]


def test_a_journal_is_ingested_and_removed(tables: RunTables):
    turns = dialogue("ann", follow_ups=5)
    write(tables.layout, *turns, given_on("ann-0"))
    log = JournalLog(tables.layout.journal, segment_bytes=2000)
    assert len(on_disk(tables.layout)) > 1
    assert tables.ingest(log) == Ingested(num_turns=6, num_feedback=1, refused=Counter())
    assert (tables.stored, on_disk(tables.layout)) == (turns, [])


def test_a_growing_journal_is_ingested_bit_by_bit_and_kept_while_it_is_written(tables: RunTables):
    log = JournalLog(tables.layout.journal, segment_bytes=1 << 20)
    assert tables.ingest(log).num_turns == 0
    for n in range(3):
        log.append(turn(f"t{n}")).result(timeout=10)
        assert tables.ingest(log).num_turns == 1
        assert len(on_disk(tables.layout)) == 1
    log.close()
    assert tables.ingest(log).num_turns == 0
    assert (tables.ids, on_disk(tables.layout)) == (["t0", "t1", "t2"], [])


def test_ingests_of_one_journal_at_once_store_every_turn_once(tables: RunTables):
    ingested: list[int] = []
    failed: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        one, log = RunTables(tables.layout.root), JournalLog(tables.layout.journal, segment_bytes=2000)
        try:
            while not stop.is_set():
                ingested.append(one.ingest(log, max_turns=7).num_turns)
            ingested.append(one.ingest(log).num_turns)
        except BaseException as error:
            failed.append(error)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    names = [f"t{n:03d}" for n in range(60)]
    for start in range(0, 60, 10):
        write(tables.layout, *(turn(name) for name in names[start : start + 10]))
    stop.set()
    for worker in workers:
        worker.join()
    assert failed == []
    assert (tables.ids, sum(ingested)) == (names, 60)


def test_a_corrupt_journal_stops_the_ingest_and_stays(tables: RunTables):
    write(tables.layout, *(turn(f"t{n}") for n in range(3)), segment_bytes=1 << 20)
    (path,) = (path for path in on_disk(tables.layout) if path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[data.index(b"t1") + 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptLog):
        tables.ingest(JournalLog(tables.layout.journal, segment_bytes=1 << 20))
    assert path.exists()


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_each_event_is_stored_once_for_any_deliveries_and_any_kills(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    tables, log = RunTables(tmp_path_factory.mktemp("run")), MemoryLog(partitions=0)
    append, events = Table.append, [*dialogue("ann", follow_ups=3), given_on("ann-0"), given_on("ann-1", "f1")]
    for _ in range(data.draw(st.integers(1, 4), label="rounds")):
        for event in data.draw(st.lists(st.sampled_from(events), max_size=8), label="delivered"):
            log.put(event, partition=data.draw(st.sampled_from(["a", "b", "c"])))
        commits = iter(range(99))
        fatal = data.draw(st.none() | st.integers(0, 3), label="dies at commit")
        after = data.draw(st.booleans(), label="after it")

        def mortal(self: Table, *what: object, commits=commits, fatal=fatal, after=after) -> int | None:  # type: ignore[no-untyped-def]
            number = next(commits)
            if number == fatal and not after:
                raise Killed
            batch: int | None = append(self, *what)  # type: ignore[arg-type]
            if number == fatal:
                raise Killed
            return batch

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Table, "append", mortal)
            try:
                RunTables(tables.layout.root).ingest(log, max_turns=data.draw(st.integers(1, 4)))
            except Killed:
                continue
    log.put(*events, partition="d")
    tables.ingest(log)
    assert tables.stored == events[:4]
    assert [each.feedback_id for each in tables.stored_feedback] == ["f0", "f1"]
    assert log.num_events == 0
