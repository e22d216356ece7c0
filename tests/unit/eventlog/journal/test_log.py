import errno
import math
import os
import queue
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_ray.config.data import CaptureConfig
from sdpo_ray.errors import CorruptLog, DataError, LogFull
from sdpo_ray.eventlog.codec import decode, encode
from sdpo_ray.eventlog.factory import open_log
from sdpo_ray.eventlog.journal import log as journal_module
from sdpo_ray.eventlog.journal.log import JournalLog
from sdpo_ray.eventlog.protocol import EventLog
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Consent, Event, Feedback, Thumb, Turn
from tests.support.conversations import turn

MIB = 1 << 20


def feedback(name: str) -> Feedback:
    return Feedback(
        feedback_id=name,
        turn_id="t0",
        tenant="default",
        user="u",
        consent=Consent.TRAIN,
        thumb=Thumb.DOWN,
        given_at_s=7.0,
    )


def write(directory: Path, *events: Event, segment_bytes: int = MIB) -> None:
    """Write `events` one after the other with a journal of their own."""
    journal = JournalLog(directory, segment_bytes=segment_bytes)
    for each in events:
        journal.append(each).result(timeout=10)
    journal.close()


def read_all(directory: Path, after: dict[str, int] | None = None) -> list[Event]:
    log = JournalLog(directory, segment_bytes=MIB)
    return list(log.poll(after or {}, max_events=10**9, max_bytes=10**12).events)


def ids(events: list[Event]) -> list[str]:
    return [each.turn_id for each in events if isinstance(each, Turn)]


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.log"))


def wait_until(true, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_turns_and_feedback_are_read_back_in_order(tmp_path):
    events = [turn("t0", "question \u00e9\U0001f600"), feedback("f0"), turn("t1")]
    write(tmp_path, *events)
    assert read_all(tmp_path) == events


def test_nan_log_probs_survive():
    read = decode(encode(turn("t0", response_logprobs=(math.nan, -math.inf))))
    assert isinstance(read, Turn)
    assert math.isnan(read.response_logprobs[0])
    assert read.response_logprobs[1] == -math.inf


@pytest.mark.parametrize("payload", [b"", b"X", b"T", b"T\x01", b"F" + encode(turn("t0"))[1:]])
def test_bytes_that_are_not_an_event_are_refused(payload):
    with pytest.raises(CorruptLog, match="event"):
        decode(payload)


@given(
    st.lists(
        st.tuples(st.text(), st.lists(st.floats(allow_nan=False), min_size=2, max_size=2)), min_size=1, max_size=8
    ),
    st.sampled_from([1, 700, MIB]),
    st.integers(1, 5),
)
@settings(deadline=None, max_examples=40)
def test_any_text_and_any_float_is_read_back_exactly_however_little_at_a_time(
    tmp_path_factory, rows, segment_bytes, max_events
):
    turns = [turn(f"t{n}", text, response_logprobs=tuple(floats)) for n, (text, floats) in enumerate(rows)]
    directory = tmp_path_factory.mktemp("journal")
    write(directory, *turns, segment_bytes=segment_bytes)
    log, read, after = JournalLog(directory, segment_bytes=MIB), [], {}
    while True:
        batch = log.poll(after, max_events=max_events, max_bytes=MIB)
        assert len(batch.events) <= max_events
        assert all(position > after.get(name, 0) for name, position in batch.positions.items())
        read += batch.events
        after |= batch.positions
        if not batch.events:
            break
    assert read == turns
    assert batch.at_end == set(log.partitions())


def test_a_process_is_one_partition_however_many_segments_it_writes(tmp_path):
    write(tmp_path, *(turn(f"t{n}") for n in range(5)), segment_bytes=700)
    write(tmp_path, turn("t5"))
    assert len(files(tmp_path)) == 6
    log = JournalLog(tmp_path, segment_bytes=MIB)
    assert len(log.partitions()) == 2
    assert log.partitions() == sorted(log.partitions())
    assert sorted(ids(read_all(tmp_path))) == ["t0", "t1", "t2", "t3", "t4", "t5"]


def test_a_poll_keeps_to_its_limits_but_gives_one_event_at_least(tmp_path):
    write(tmp_path, *(turn(f"t{n}") for n in range(4)))
    log, size = JournalLog(tmp_path, segment_bytes=MIB), len(encode(turn("t0")))
    assert len(log.poll({}, max_events=3, max_bytes=MIB).events) == 3
    assert len(log.poll({}, max_events=9, max_bytes=2 * size).events) == 2
    assert len(log.poll({}, max_events=9, max_bytes=3 * size - 1).events) == 2
    assert len(log.poll({}, max_events=9, max_bytes=1).events) == 1
    assert log.poll({}, max_events=4, max_bytes=MIB).at_end == set(log.partitions())
    assert log.poll({}, max_events=3, max_bytes=MIB).at_end == set()


def test_partitions_take_turns_so_that_a_busy_one_starves_no_other(tmp_path):
    for name in "abc":
        write(tmp_path, *(turn(f"{name}{n}") for n in range(50 if name == "a" else 2)))
    log = JournalLog(tmp_path, segment_bytes=MIB)
    assert {name[0] for name in ids(list(log.poll({}, max_events=3, max_bytes=MIB).events))} == {"a", "b", "c"}
    after: dict[str, int] = {}
    first = []
    for _ in range(6):
        batch = log.poll(after, max_events=1, max_bytes=MIB)
        after |= batch.positions
        first += ids(list(batch.events))
    assert {"a", "b", "c"} == {name[0] for name in first}


def test_a_partition_is_at_its_end_only_when_a_look_found_nothing_more(tmp_path):
    journal = JournalLog(tmp_path, segment_bytes=MIB)
    journal.append(turn("t0")).result(timeout=10)
    (name,) = journal.partitions()
    batch = journal.poll({}, max_events=9, max_bytes=MIB)
    assert (ids(list(batch.events)), batch.at_end) == (["t0"], {name})
    again = journal.poll(batch.positions, max_events=9, max_bytes=MIB)
    assert (again.events, again.positions, again.at_end) == ((), {}, {name})
    journal.append(turn("t1")).result(timeout=10)
    assert ids(list(journal.poll(batch.positions, max_events=9, max_bytes=MIB).events)) == ["t1"]
    journal.close()


def test_a_partition_that_another_reader_removed_is_at_its_end(tmp_path):
    write(tmp_path, turn("t0"))
    log = JournalLog(tmp_path, segment_bytes=MIB)
    gone = log.poll({}, max_events=9, max_bytes=MIB).positions
    log.truncate(gone)
    batch = log.poll(gone, max_events=9, max_bytes=MIB)
    assert (batch.events, batch.positions, batch.at_end) == ((), {}, gone.keys())


def test_an_unwritten_directory_is_an_empty_log(tmp_path):
    log = JournalLog(tmp_path / "none", segment_bytes=MIB)
    assert log.partitions() == []
    assert log.poll({}, max_events=1, max_bytes=1).events == ()
    log.truncate({})
    assert log.backlog_bytes({}) == 0
    log.close()
    assert not (tmp_path / "none").exists()


def test_only_fully_read_segments_without_a_live_writer_are_removed(tmp_path):
    write(tmp_path, turn("t0"), turn("t1"), turn("t2"), segment_bytes=1)
    living = JournalLog(tmp_path, segment_bytes=MIB)
    living.append(turn("t3")).result(timeout=10)
    log = JournalLog(tmp_path, segment_bytes=MIB)
    dead, alive = log.partitions()
    log.truncate({})
    assert len(files(tmp_path)) == 4
    log._polls = 1  # So that the dead one's events come first.
    half = log.poll({}, max_events=3, max_bytes=MIB).positions
    log.truncate({dead: half[dead]})
    assert ids(read_all(tmp_path, half)) == ["t2"]
    assert len(files(tmp_path)) == 2
    log.truncate(log.poll({}, max_events=9, max_bytes=MIB).positions | {alive: half[alive]})
    assert log.partitions() == [alive]
    living.close()
    log.truncate({alive: half[alive]})
    assert log.partitions() == []


def test_a_living_writer_keeps_its_segment_though_all_of_it_was_read(tmp_path):
    journal = JournalLog(tmp_path, segment_bytes=MIB)
    journal.append(turn("t0")).result(timeout=10)
    journal.truncate(journal.poll({}, max_events=9, max_bytes=MIB).positions)
    after = journal.poll({}, max_events=9, max_bytes=MIB).positions
    journal.append(turn("t1")).result(timeout=10)
    assert ids(read_all(tmp_path, after)) == ["t1"]
    journal.close()


def test_a_segment_that_a_reader_removes_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    import fcntl

    lock, removed = fcntl.flock, []

    def too_late(fd: int, operation: int) -> None:
        if not removed:
            removed.extend(files(tmp_path))
            removed[0].unlink()
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", too_late)
    write(tmp_path, turn("t0"))
    assert ids(read_all(tmp_path)) == ["t0"]
    assert removed[0] not in files(tmp_path)


def test_room_is_allocated_in_advance_and_given_back_when_a_segment_is_sealed(tmp_path):
    journal = JournalLog(tmp_path, segment_bytes=MIB)
    journal.append(turn("t0")).result(timeout=10)
    (path,) = files(tmp_path)
    assert path.stat().st_size == MIB
    assert path.stat().st_blocks * 512 >= MIB
    assert journal.backlog_bytes({}) <= 8192
    journal.close()
    assert path.stat().st_size < 1000
    assert journal.backlog_bytes({}) == path.stat().st_size
    assert journal.backlog_bytes(journal.poll({}, max_events=1, max_bytes=MIB).positions) == 0


def test_a_segment_is_sealed_before_it_grows_beyond_its_size(tmp_path):
    write(tmp_path, *(turn(f"t{n}") for n in range(20)), segment_bytes=2000)
    sizes = [path.stat().st_size for path in files(tmp_path)]
    assert len(sizes) > 3
    assert max(sizes) <= 2000


def test_a_segment_is_sealed_by_age_though_nothing_more_is_written(tmp_path):
    journal = JournalLog(tmp_path, segment_bytes=MIB, segment_s=0.05)
    journal.append(turn("t0")).result(timeout=10)
    wait_until(lambda: files(tmp_path)[0].stat().st_size < MIB)
    journal.truncate(journal.poll({}, max_events=9, max_bytes=MIB).positions)
    assert files(tmp_path) == []
    journal.append(turn("t1")).result(timeout=10)
    assert ids(read_all(tmp_path)) == ["t1"]
    journal.close()


def test_a_segment_is_sealed_by_age_under_a_steady_stream(tmp_path):
    journal = JournalLog(tmp_path, segment_bytes=MIB, segment_s=0.05)
    deadline = time.monotonic() + 20
    n = 0
    while len(files(tmp_path)) < 4:
        assert time.monotonic() < deadline
        journal.append(turn(f"t{n}")).result(timeout=10)
        n += 1
    journal.close()
    assert ids(read_all(tmp_path)) == [f"t{each}" for each in range(n)]


def test_a_clock_that_steps_back_breaks_neither_order_nor_names_nor_ages(tmp_path, monkeypatch):
    now = iter(range(10**12, 0, -(10**10)))
    monkeypatch.setattr(time, "time_ns", lambda: next(now))
    monkeypatch.setattr(time, "time", lambda: next(now) / 1e9)
    log = JournalLog(tmp_path, segment_bytes=MIB)
    after: dict[str, int] = {}
    read = []
    for n in range(5):
        write(tmp_path, *(turn(f"t{n}{m}") for m in range(3)), segment_bytes=1)
        batch = log.poll(after, max_events=99, max_bytes=MIB)
        after |= batch.positions
        read += ids(list(batch.events))
    assert read == [f"t{n}{m}" for n in range(5) for m in range(3)]
    assert len(log.partitions()) == 5
    log.truncate(after)
    assert files(tmp_path) == []


def test_a_turn_is_acknowledged_after_the_sync_and_not_before(tmp_path, monkeypatch):
    write(tmp_path, turn("before"))
    asked, go, sync = threading.Event(), threading.Event(), os.fdatasync
    syncs: list[int] = []

    def slow_sync(fd: int) -> None:
        syncs.append(fd)
        if len(syncs) == 2:  # The first one is that of the segment's head.
            asked.set()
            assert go.wait(10)
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", slow_sync)
    journal = JournalLog(tmp_path, segment_bytes=MIB)
    durable = journal.append(turn("t0"))
    assert asked.wait(10)
    assert sorted(ids(read_all(tmp_path))) == ["before", "t0"]
    assert not durable.done()
    go.set()
    durable.result(timeout=10)
    journal.close()


def test_turns_that_wait_together_share_one_sync(tmp_path, monkeypatch):
    asked, go, sync = threading.Event(), threading.Event(), os.fdatasync
    syncs: list[int] = []

    def first_waits(fd: int) -> None:
        syncs.append(fd)
        asked.set()
        assert go.wait(10)
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", first_waits)
    journal = JournalLog(tmp_path, segment_bytes=MIB)
    waiting = [journal.append(turn("t0"))]
    assert asked.wait(10)
    waiting += [journal.append(turn(f"t{n}")) for n in range(1, 100)]
    go.set()
    for durable in waiting:
        durable.result(timeout=10)
    journal.close()
    assert len(syncs) == 3  # The head, the first turn, the others.
    assert len(read_all(tmp_path)) == 100


def test_the_journal_is_bounded_and_goes_on_by_itself_when_there_is_room(tmp_path):
    log = JournalLog(tmp_path, segment_bytes=MIB)
    journal = JournalLog(tmp_path, segment_bytes=MIB, segment_s=0.02, max_bytes=MIB + 1000)
    for n in range(2):
        write(tmp_path, turn(f"other{n}", "x" * 600))
    with pytest.raises(LogFull, match="may take 1 MiB"):
        journal.append(turn("lost")).result(timeout=10)
    began = time.monotonic()
    with pytest.raises(LogFull):
        journal.append(turn("lost")).result(timeout=10)
    log.truncate(log.poll({}, max_events=99, max_bytes=MIB).positions)
    while True:
        try:
            journal.append(turn("t0")).result(timeout=10)
            break
        except LogFull:
            assert time.monotonic() < began + 20
            time.sleep(0.05)
    journal.close()
    assert ids(read_all(tmp_path)) == ["t0"]


def test_a_segment_that_was_begun_is_filled_though_the_bound_is_reached(tmp_path):
    journal = JournalLog(tmp_path, segment_bytes=MIB, max_bytes=MIB)
    for n in range(3):
        journal.append(turn(f"t{n}")).result(timeout=10)
    write(tmp_path, turn("other"))
    journal.append(turn("t3")).result(timeout=10)
    journal.close()


def test_a_full_log_is_an_error_of_the_system_like_a_full_disk():
    assert issubclass(LogFull, OSError)
    assert str(LogFull("no room")) == "no room"


def test_a_disk_that_hangs_delays_no_caller_and_takes_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "_MAX_WAITING_BYTES", 5000)
    go, sync = threading.Event(), os.fdatasync

    def stuck(fd: int) -> None:
        assert go.wait(20)
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", stuck)
    journal = JournalLog(tmp_path, segment_bytes=MIB)
    waiting = [journal.append(turn(f"t{n}")) for n in range(100)]
    refused = [each for each in waiting if each.done()]
    assert 0 < len(refused) < 100
    assert all(isinstance(each.exception(), LogFull) for each in refused)
    go.set()
    journal.close()
    assert len(read_all(tmp_path)) == 100 - len(refused)
    assert all(each.exception() is None for each in waiting if each not in refused)


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_write_that_fails_fails_its_batch_and_the_next_one_goes_to_a_new_segment(tmp_path, monkeypatch, reason):
    write_bytes, broken = os.pwrite, False

    def write_half(fd: int, data, offset: int) -> int:
        if not broken:
            return write_bytes(fd, data, offset)
        if len(data) > 100:
            return write_bytes(fd, data[:100], offset)
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "pwrite", write_half)
    journal = JournalLog(tmp_path, segment_bytes=MIB)
    journal.append(turn("t0")).result(timeout=10)
    broken = True
    for name in ("lost1", "lost2"):
        with pytest.raises(OSError, match=os.strerror(reason)):
            journal.append(turn(name)).result(timeout=10)
    broken = False
    journal.append(turn("t1")).result(timeout=10)
    journal.close()
    assert ids(read_all(tmp_path)) == ["t0", "t1"]
    assert len(files(tmp_path)) == 2


def test_a_failed_sync_fails_its_batch_and_its_segment_is_never_written_again(tmp_path, monkeypatch):
    sync, broken = os.fdatasync, False

    def maybe(fd: int) -> None:
        if broken:
            raise OSError(errno.EIO, "Input/output error")
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", maybe)
    journal = JournalLog(tmp_path, segment_bytes=MIB)
    journal.append(turn("t0")).result(timeout=10)
    broken = True
    with pytest.raises(OSError, match="Input/output"):
        journal.append(turn("lost")).result(timeout=10)
    size = files(tmp_path)[0].stat().st_size
    broken = False
    journal.append(turn("t1")).result(timeout=10)
    journal.close()
    assert files(tmp_path)[0].stat().st_size == size
    assert ids(read_all(tmp_path)) == ["t0", "t1"]


def test_a_reader_that_saw_what_a_failed_sync_took_back_misses_nothing_after_it(tmp_path, monkeypatch):
    sync, looked = os.fdatasync, []
    journal = JournalLog(tmp_path, segment_bytes=MIB)
    journal.append(turn("t0")).result(timeout=10)

    def read_and_fail(fd: int) -> None:
        looked.append(JournalLog(tmp_path, segment_bytes=MIB).poll({}, max_events=9, max_bytes=MIB))
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", read_and_fail)
    with pytest.raises(OSError, match="Input/output"):
        journal.append(turn("taken back", "x" * 5000)).result(timeout=10)
    monkeypatch.setattr(os, "fdatasync", sync)
    journal.append(turn("t1")).result(timeout=10)
    journal.close()
    assert ids(list(looked[0].events)) == ["t0", "taken back"]
    assert ids(read_all(tmp_path, looked[0].positions)) == ["t1"]


def test_a_file_system_that_cannot_allocate_is_written_all_the_same(tmp_path, monkeypatch):
    def cannot(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    write(tmp_path, turn("t0"), turn("t1"))
    assert ids(read_all(tmp_path)) == ["t0", "t1"]


def test_no_room_to_allocate_fails_the_append_and_leaves_nothing(tmp_path, monkeypatch):
    allocate = os.posix_fallocate

    def full(fd: int, offset: int, size: int) -> None:
        allocate(fd, offset, size // 2)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    journal = JournalLog(tmp_path, segment_bytes=MIB)
    with pytest.raises(OSError, match="No space left"):
        journal.append(turn("lost")).result(timeout=10)
    assert files(tmp_path) == []
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    journal.append(turn("t0")).result(timeout=10)
    journal.close()
    assert ids(read_all(tmp_path)) == ["t0"]


def test_a_directory_that_is_gone_fails_the_append_until_it_is_back(tmp_path):
    """As for a volume that is not mounted: events written into its mount point would not be found."""
    directory = tmp_path / "journal"
    journal = JournalLog(directory, segment_bytes=1)
    journal.append(turn("t0")).result(timeout=10)
    directory.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        journal.append(turn("lost")).result(timeout=10)
    (tmp_path / "elsewhere").rename(directory)
    journal.append(turn("t1")).result(timeout=10)
    journal.close()
    assert ids(read_all(directory)) == ["t0", "t1"]


def test_a_client_that_disconnects_does_not_stop_the_journal(tmp_path):
    journal = JournalLog(tmp_path, segment_bytes=MIB)
    assert not journal.append(turn("t0")).cancel()
    journal.append(turn("t1")).result(timeout=10)
    journal.close()
    assert len(read_all(tmp_path)) == 2


def test_a_turn_without_utf8_form_is_refused_and_the_next_one_written(tmp_path):
    journal = JournalLog(tmp_path, segment_bytes=MIB)
    with pytest.raises(DataError, match="t0 cannot be written"):
        journal.append(turn("t0", template_kwargs="\ud800"))
    journal.append(turn("t1")).result(timeout=10)
    journal.close()
    assert read_all(tmp_path) == [turn("t1")]


def test_closing_writes_what_is_queued_and_refuses_what_comes_after(tmp_path):
    journal = JournalLog(tmp_path, segment_bytes=MIB)
    waiting = [journal.append(turn(f"t{n}")) for n in range(200)]
    journal.close()
    journal.close()
    assert all(durable.done() and durable.exception() is None for durable in waiting)
    assert len(read_all(tmp_path)) == 200
    with pytest.raises(ValueError, match="closed"):
        journal.append(turn("late"))


def test_a_journal_that_is_only_read_starts_no_thread(tmp_path):
    before = threading.active_count()
    journal = JournalLog(tmp_path, segment_bytes=MIB)
    journal.poll({}, max_events=1, max_bytes=1)
    assert threading.active_count() == before
    journal.close()
    assert list(tmp_path.iterdir()) == []


def test_threads_that_append_at_once_lose_nothing_and_readers_see_each_once(tmp_path):
    journal = JournalLog(tmp_path, segment_bytes=4000)
    done: queue.SimpleQueue[None] = queue.SimpleQueue()

    def append(who: int) -> None:
        for n in range(50):
            journal.append(turn(f"{who}-{n}")).result(timeout=10)
        done.put(None)

    threads = [threading.Thread(target=append, args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    log, after, read = JournalLog(tmp_path, segment_bytes=MIB), {}, []
    while True:
        finished = done.qsize() == 8
        batch = log.poll(after, max_events=30, max_bytes=MIB)
        after |= batch.positions
        read += ids(list(batch.events))
        log.truncate(after)
        if finished and not batch.events:
            break
    for thread in threads:
        thread.join()
    journal.close()
    assert sorted(read) == sorted(f"{who}-{n}" for who in range(8) for n in range(50))
    log.truncate(after)
    assert files(tmp_path) == []


def test_two_readers_at_once_both_see_all_of_it(tmp_path):
    write(tmp_path, *(turn(f"t{n}") for n in range(30)), segment_bytes=1000)
    one, two = (JournalLog(tmp_path, segment_bytes=MIB) for _ in range(2))
    first, second = (each.poll({}, max_events=12, max_bytes=MIB) for each in (one, two))
    assert first == second
    one.truncate(first.positions)
    # The other one has not stored what it read yet, and goes on from where it was.
    assert ids(read_all(tmp_path, second.positions)) == [f"t{n}" for n in range(12, 30)]
    late = two.poll({}, max_events=99, max_bytes=MIB)
    assert set(ids(list(late.events))) >= {f"t{n}" for n in range(12, 30)}


def test_an_acknowledged_frame_that_broke_stops_the_reader_loudly(tmp_path):
    write(tmp_path, *(turn(f"t{n}") for n in range(3)))
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    log = JournalLog(tmp_path, segment_bytes=MIB)
    with pytest.raises(CorruptLog, match="is broken, those after it are not"):
        log.poll({}, max_events=9, max_bytes=MIB)
    log.truncate({})
    assert files(tmp_path) == [path]


def test_the_run_file_says_which_log_it_is(tmp_path):
    layout = Layout(tmp_path)
    log: EventLog = open_log(layout, CaptureConfig())
    assert isinstance(log, JournalLog)
    log.append(turn("t0")).result(timeout=10)
    assert files(layout.journal)[0].stat().st_size == 16 * MIB
    assert "-replica-" in log.partitions()[0]
    log.close()
