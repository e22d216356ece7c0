"""Segments: allocated, locked, sealed by size and age; writes and syncs that fail."""

import errno
import os
import time

import pytest

from sdpo_ray.eventlog.journal.log import JournalLog
from tests.support.conversations import turn
from tests.support.journals import MIB, files, ids, read_all, write


def wait_until(true, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
