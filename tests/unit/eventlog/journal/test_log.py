"""Appending to the journal: durability, bounds, closing, threads."""

import os
import queue
import threading
import time

import pytest

from sdpo_ray.errors import DataError, LogFull
from sdpo_ray.eventlog.journal import log as journal_module
from sdpo_ray.eventlog.journal.log import JournalLog
from tests.support.conversations import turn
from tests.support.journals import MIB, files, ids, read_all, write


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


def test_the_journal_is_bounded_and_accepts_events_again_when_there_is_room(tmp_path):
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


def test_a_full_log_is_an_os_error_like_a_full_disk():
    assert issubclass(LogFull, OSError)
    assert str(LogFull("no room")) == "no room"


def test_a_disk_that_hangs_blocks_no_caller_and_bounds_the_memory(tmp_path, monkeypatch):
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


def test_a_cancelled_append_does_not_stop_the_journal(tmp_path):
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
