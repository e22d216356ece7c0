import errno
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conversations import turn
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_ray.capture.journal import Journal
from sdpo_ray.capture.segments import SegmentLog, frame, read_segment, segments
from sdpo_ray.errors import CorruptJournal, DataError
from sdpo_ray.records import Turn

MIB = 1 << 20


def write(directory: Path, *turns: Turn, segment_bytes: int = MIB) -> list[Path]:
    """Write `turns` one after the other with a journal of their own; return its segments."""
    before = set(segments(directory))
    journal = Journal(directory, segment_bytes=segment_bytes)
    for each in turns:
        journal.append(each).result(timeout=10)
    journal.close()
    return [path for path in segments(directory) if path not in before]


def read_all(directory: Path) -> list[Turn]:
    return [each for path in segments(directory) for each in read_segment(path)[0]]


def test_what_is_appended_is_read_back_in_order(tmp_path):
    turns = [turn(f"t{n}", f"question {n} \u00e9\U0001f600") for n in range(5)]
    (path,) = write(tmp_path, *turns)
    assert read_segment(path) == (turns, path.stat().st_size)


def test_reading_goes_on_from_an_offset_and_stops_at_another(tmp_path):
    (path,) = write(tmp_path, turn("t0"), turn("t1"), turn("t2"))
    size = path.stat().st_size // 3
    assert read_segment(path, size, 2 * size) == ([turn("t1")], 2 * size)
    assert read_segment(path, 3 * size) == ([], 3 * size)
    assert read_segment(path, 0, size + 5) == ([turn("t0")], size)


def test_log_probs_that_are_no_numbers_survive(tmp_path):
    (path,) = write(tmp_path, turn("t0", response_logprobs=(math.nan, -math.inf)))
    first, second = read_segment(path)[0][0].response_logprobs
    assert math.isnan(first)
    assert second == -math.inf


@given(st.lists(st.tuples(st.text(), st.lists(st.floats(allow_nan=False), min_size=2, max_size=2))), st.data())
@settings(deadline=None, max_examples=40)
def test_any_text_and_any_float_is_read_back_exactly(tmp_path_factory, rows, data):
    turns = [turn(f"t{n}", text, response_logprobs=tuple(floats)) for n, (text, floats) in enumerate(rows)]
    directory = tmp_path_factory.mktemp("journal")
    write(directory, *turns, segment_bytes=data.draw(st.sampled_from([1, 700, MIB])))
    assert read_all(directory) == turns


def test_a_torn_tail_at_every_byte_is_a_turn_that_was_never_written(tmp_path):
    (path,) = write(tmp_path, turn("t0"), turn("t1"))
    whole = path.read_bytes()
    kept = len(whole) // 2
    for size in range(kept, len(whole)):
        path.write_bytes(whole[:size])
        assert read_segment(path) == ([turn("t0")], kept)


def test_a_last_frame_with_any_byte_wrong_is_not_read(tmp_path):
    (path,) = write(tmp_path, turn("t0"), turn("t1"))
    whole = path.read_bytes()
    kept = len(whole) // 2
    for index in range(kept, len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 0x40]) + whole[index + 1 :])
        assert read_segment(path) == ([turn("t0")], kept)


def test_a_broken_frame_that_was_acknowledged_is_corruption_at_every_byte(tmp_path):
    (path,) = write(tmp_path, turn("t0"), turn("t1"), turn("t2"))
    whole = path.read_bytes()
    size = len(whole) // 3
    for index in range(size, 2 * size):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 0x40]) + whole[index + 1 :])
        with pytest.raises(CorruptJournal, match=f"frame at offset {size} is broken"):
            read_segment(path)


def test_a_hole_in_a_batch_that_was_never_acknowledged_is_a_torn_tail(tmp_path):
    (path,) = write(tmp_path, turn("t0"))
    synced = path.stat().st_size
    lost, whole = frame(b"x" * 100, synced), frame(b"y" * 100, synced)
    with path.open("ab") as file:
        file.write(bytes(len(lost)) + whole)
    assert read_segment(path) == ([turn("t0")], synced)


def test_a_sound_frame_that_is_no_turn_is_corruption(tmp_path):
    path = tmp_path / "a.log"
    path.write_bytes(frame(b"\x01", 0))
    with pytest.raises(CorruptJournal, match="offset 0 is not a Turn"):
        read_segment(path)


def test_a_segment_is_sealed_by_size_and_a_new_process_begins_its_own(tmp_path):
    first = write(tmp_path, *(turn(f"t{n}") for n in range(5)), segment_bytes=700)
    second = write(tmp_path, turn("t5"))
    assert len(first) == 3
    assert [path.stat().st_size >= 700 for path in first] == [True, True, False]
    assert segments(tmp_path) == first + second
    assert [each.turn_id for each in read_all(tmp_path)] == ["t0", "t1", "t2", "t3", "t4", "t5"]


def test_an_idle_journal_leaves_no_file(tmp_path):
    Journal(tmp_path, segment_bytes=MIB).close()
    assert list(tmp_path.iterdir()) == []


def test_a_turn_is_acknowledged_after_the_sync_and_not_before(tmp_path, monkeypatch):
    asked, go = threading.Event(), threading.Event()

    def slow_sync(fd: int) -> None:
        asked.set()
        assert go.wait(10)

    monkeypatch.setattr(os, "fdatasync", slow_sync)
    journal = Journal(tmp_path, segment_bytes=MIB)
    durable = journal.append(turn("t0"))
    assert asked.wait(10)
    assert read_all(tmp_path) == [turn("t0")]
    assert not durable.done()
    go.set()
    durable.result(timeout=10)
    journal.close()


def test_turns_that_wait_together_share_one_sync(tmp_path, monkeypatch):
    syncs, asked, go = [], threading.Event(), threading.Event()

    def first_waits(fd: int) -> None:
        syncs.append(fd)
        asked.set()
        assert go.wait(10)

    monkeypatch.setattr(os, "fdatasync", first_waits)
    journal = Journal(tmp_path, segment_bytes=MIB)
    waiting = [journal.append(turn("t0"))]
    assert asked.wait(10)
    waiting += [journal.append(turn(f"t{n}")) for n in range(1, 100)]
    go.set()
    for durable in waiting:
        durable.result(timeout=10)
    journal.close()
    assert len(syncs) == 2
    assert len(read_all(tmp_path)) == 100


def test_a_full_disk_fails_its_batch_and_the_journal_goes_on_when_there_is_room(tmp_path, monkeypatch):
    write_bytes = os.write
    full = False

    def write_half(fd: int, data) -> int:
        if not full:
            return write_bytes(fd, data)
        if len(data) > 100:
            return write_bytes(fd, data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", write_half)
    journal = Journal(tmp_path, segment_bytes=MIB)
    journal.append(turn("t0")).result(timeout=10)
    full = True
    for name in ("lost1", "lost2"):
        with pytest.raises(OSError, match="No space left"):
            journal.append(turn(name)).result(timeout=10)
    full = False
    journal.append(turn("t1")).result(timeout=10)
    journal.close()
    assert [each.turn_id for each in read_all(tmp_path)] == ["t0", "t1"]
    assert len(segments(tmp_path)) == 2


def test_a_failed_sync_fails_its_batch_and_its_segment_is_never_written_again(tmp_path, monkeypatch):
    sync, broken = os.fdatasync, False

    def maybe(fd: int) -> None:
        if broken:
            raise OSError(errno.EIO, "Input/output error")
        sync(fd)

    monkeypatch.setattr(os, "fdatasync", maybe)
    journal = Journal(tmp_path, segment_bytes=MIB)
    journal.append(turn("t0")).result(timeout=10)
    size = segments(tmp_path)[0].stat().st_size
    broken = True
    with pytest.raises(OSError, match="Input/output"):
        journal.append(turn("lost")).result(timeout=10)
    broken = False
    journal.append(turn("t1")).result(timeout=10)
    journal.close()
    assert segments(tmp_path)[0].stat().st_size == size
    assert [each.turn_id for each in read_all(tmp_path)] == ["t0", "t1"]


def test_a_file_size_limit_is_a_full_disk_that_the_kernel_makes(tmp_path):
    script = """
import resource, sys
from pathlib import Path
from conversations import turn
from sdpo_ray.capture.journal import Journal
journal = Journal(Path(sys.argv[1]), segment_bytes=1 << 20)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
for n in range(100):
    try:
        journal.append(turn(f"t{n}")).result(timeout=10)
        print(f"t{n}", end=" ")
    except OSError:
        print("refused", end=" ")
journal.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.getcwd()])},
    )
    words = done.stdout.split()
    assert "refused" in words
    assert [each.turn_id for each in read_all(tmp_path)] == [word for word in words if word != "refused"]


def test_a_directory_that_cannot_be_written_fails_the_append_and_leaves_nothing(tmp_path):
    directory = tmp_path / "journal"
    journal = Journal(directory, segment_bytes=MIB)
    directory.rmdir()
    with pytest.raises(FileNotFoundError):
        journal.append(turn("t0")).result(timeout=10)
    directory.mkdir()
    journal.append(turn("t1")).result(timeout=10)
    journal.close()
    assert read_all(directory) == [turn("t1")]


def test_a_client_that_hangs_up_does_not_stop_the_journal(tmp_path):
    journal = Journal(tmp_path, segment_bytes=MIB)
    assert not journal.append(turn("t0")).cancel()
    journal.append(turn("t1")).result(timeout=10)
    journal.close()
    assert len(read_all(tmp_path)) == 2


def test_a_turn_without_utf8_form_is_refused_and_the_next_one_written(tmp_path):
    journal = Journal(tmp_path, segment_bytes=MIB)
    with pytest.raises(DataError, match="t0 cannot be written"):
        journal.append(turn("t0", "\ud800"))
    journal.append(turn("t1")).result(timeout=10)
    journal.close()
    assert read_all(tmp_path) == [turn("t1")]


def test_closing_writes_what_is_queued_and_refuses_what_comes_after(tmp_path):
    journal = Journal(tmp_path, segment_bytes=MIB)
    waiting = [journal.append(turn(f"t{n}")) for n in range(200)]
    journal.close()
    journal.close()
    assert all(durable.done() and durable.exception() is None for durable in waiting)
    assert len(read_all(tmp_path)) == 200
    with pytest.raises(ValueError, match="closed"):
        journal.append(turn("late"))


def test_threads_that_append_at_once_lose_nothing(tmp_path):
    journal = Journal(tmp_path, segment_bytes=4000)

    def append(who: int) -> None:
        for n in range(50):
            journal.append(turn(f"{who}-{n}")).result(timeout=10)

    threads = [threading.Thread(target=append, args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journal.close()
    ids = [each.turn_id for each in read_all(tmp_path)]
    assert sorted(ids) == sorted(f"{who}-{n}" for who in range(8) for n in range(50))


def test_only_segments_that_were_read_to_the_end_and_nobody_writes_go(tmp_path):
    write(tmp_path, turn("t0"), turn("t1"))
    living = Journal(tmp_path, segment_bytes=MIB)
    living.append(turn("t2")).result(timeout=10)
    log = SegmentLog(tmp_path)
    ends = log.ends()
    first, second = ends
    half = {first: ends[first] // 2, second: ends[second]}
    assert log.truncate(half) == 0
    assert log.truncate(ends) == 1
    assert log.truncate(ends) == 0
    assert list(log.ends()) == [second]
    living.close()
    assert log.truncate(ends) == 1
    assert log.ends() == {}


def test_a_segment_with_a_torn_tail_goes_once_its_turns_were_read(tmp_path):
    (path,) = write(tmp_path, turn("t0"))
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(b"SDTJ torn")
    log = SegmentLog(tmp_path)
    assert log.read(path.stem, 0, log.ends()[path.stem]) == ([turn("t0")], size)
    assert log.truncate({path.stem: 0}) == 0
    assert log.truncate({path.stem: size}) == 1


def test_an_empty_segment_stays_because_its_writer_may_be_about_to_lock_it(tmp_path):
    (tmp_path / "a.log").touch()
    assert SegmentLog(tmp_path).truncate({"a": 0}) == 0


def test_a_segment_that_is_gone_has_nothing_left_to_read(tmp_path):
    assert SegmentLog(tmp_path).read("gone", 40, 80) == ([], 40)


def test_the_ends_are_those_of_one_moment(tmp_path, monkeypatch):
    """A look that is overtaken by a writer is taken again."""
    (path,) = write(tmp_path, turn("t0"))
    log, looks = SegmentLog(tmp_path), []
    look = log._lengths

    def growing() -> dict[str, int]:
        looks.append(look())
        if len(looks) == 1:
            write(tmp_path, turn("t1"))
        return looks[-1]

    monkeypatch.setattr(log, "_lengths", growing)
    assert log.ends() == looks[-1] == look()
    assert len(looks) == 3
    assert path.stem in log.ends()
