import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_ray.errors import CorruptLog
from sdpo_ray.eventlog.journal.segments import HEAD_BYTES, frame, frames, head, written_bytes

SALT = b"12345678"
ROOM = 1 << 20


def segment(path: Path, *batches: list[bytes], zeros: int = 0) -> list[int]:
    """Write the batches as a writer does, each synced before the next; return the offsets of all frames."""
    data, offsets = head(SALT), []
    for batch in batches:
        synced = len(data)
        for payload in batch:
            offsets.append(len(data))
            data += frame(payload, salt=SALT, synced=synced)
    path.write_bytes(data + bytes(zeros))
    return offsets


def payloads(path: Path, offset: int = 0) -> list[bytes]:
    return [payload for payload, _ in frames(path, offset)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.log"


def test_frames_are_read_in_order_from_any_offset_that_was_given(path):
    segment(path, [b"one", b""], [b"three" * 100])
    read = list(frames(path))
    assert [payload for payload, _ in read] == [b"one", b"", b"three" * 100]
    assert read[-1][1] == path.stat().st_size
    for index, (_, end) in enumerate(read):
        assert list(frames(path, end)) == read[index + 1 :]


def test_a_frame_larger_than_what_is_read_at_once_is_read_whole(path):
    large = os.urandom(1_000_000)
    segment(path, [b"one"], [large, b"two"])
    assert payloads(path) == [b"one", large, b"two"]


@given(st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=4), max_size=6), st.booleans())
@settings(deadline=None, max_examples=50)
def test_whatever_bytes_are_written_are_read_with_room_behind_them_or_without(tmp_path_factory, batches, room):
    path = tmp_path_factory.mktemp("segment") / "a.log"
    segment(path, *batches, zeros=5000 if room else 0)
    assert payloads(path) == [payload for batch in batches for payload in batch]


def test_a_segment_that_is_gone_or_only_allocated_or_has_only_a_head_holds_nothing(path):
    assert payloads(path) == []
    assert payloads(path, 400) == []
    path.touch()
    assert payloads(path) == []
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, ROOM)
    assert payloads(path) == []
    path.write_bytes(head(SALT) + bytes(100))
    assert payloads(path) == []


@pytest.mark.parametrize("zeros", [0, 10_000])
def test_a_torn_last_frame_at_every_byte_is_an_event_that_was_never_written(path, zeros):
    _, torn = segment(path, [b"whole" * 9], [b"torn" * 9])
    data = path.read_bytes()
    for size in range(torn, len(data)):
        path.write_bytes(data[:size] + bytes(zeros))
        assert list(frames(path)) == [(b"whole" * 9, torn)]
        assert list(frames(path, torn)) == []


@pytest.mark.parametrize("zeros", [0, 10_000])
def test_a_last_frame_with_any_byte_wrong_is_not_read(path, zeros):
    _, last = segment(path, [b"whole" * 9], [b"last" * 9], zeros=zeros)
    data = path.read_bytes()
    for index in range(last, len(data) - zeros):
        path.write_bytes(data[:index] + bytes([data[index] ^ 0x40]) + data[index + 1 :])
        assert payloads(path) == [b"whole" * 9]


@pytest.mark.parametrize("zeros", [0, 10_000])
def test_a_broken_frame_that_was_acknowledged_is_corruption_at_every_byte(path, zeros):
    _, middle, last = segment(path, [b"one"], [b"two" * 9], [b"three"], zeros=zeros)
    data = path.read_bytes()
    for index in range(middle, last):
        path.write_bytes(data[:index] + bytes([data[index] ^ 0x40]) + data[index + 1 :])
        with pytest.raises(
            CorruptLog, match=rf"a\.log: the frame at offset {middle} is broken, those after it are not"
        ):
            payloads(path)


def test_zeros_in_the_middle_of_what_was_acknowledged_are_corruption_and_not_the_end(path):
    blocks = [[bytes([letter]) * 4096] for letter in b"abcdefgh"]
    offsets = segment(path, *blocks)
    with path.open("r+b") as file:
        file.seek(offsets[2])
        file.write(bytes(offsets[5] - offsets[2]))
    with pytest.raises(CorruptLog, match=f"frame at offset {offsets[2]} is broken"):
        payloads(path)


def test_a_hole_in_the_file_where_acknowledged_frames_were_is_corruption(path):
    """What a file system makes of lost blocks: no data there at all, which a reader might skip unread."""
    offsets = segment(path, *([bytes([letter]) * 4096] for letter in b"abcdefgh"))
    data = path.read_bytes()
    hole, end = -(-offsets[2] // 4096) * 4096, offsets[7] // 4096 * 4096
    path.unlink()
    with path.open("wb") as file:
        file.write(data[:hole])
        file.seek(end)
        file.write(data[end:])
    assert path.stat().st_blocks * 512 < len(data)
    with pytest.raises(CorruptLog, match=f"frame at offset {offsets[2]} is broken"):
        payloads(path)


def test_a_hole_in_a_batch_that_was_never_acknowledged_is_a_torn_tail(path):
    """Pages reach the disk in any order: the second frame of a batch may be there without the first."""
    first, lost, kept = segment(path, [b"one"], [b"lost" * 9, b"kept"])
    data = path.read_bytes()
    path.write_bytes(data[:lost] + bytes(kept - lost) + data[kept:])
    assert list(frames(path)) == [(b"one", lost)]
    assert first == HEAD_BYTES


def test_a_broken_head_is_corruption_once_anything_stands_behind_it(path):
    segment(path, [b"one"])
    data = path.read_bytes()
    for index in range(HEAD_BYTES):
        path.write_bytes(data[:index] + bytes([data[index] ^ 0x40]) + data[index + 1 :])
        with pytest.raises(CorruptLog, match="the head is broken, or of another release"):
            payloads(path)
        path.write_bytes(path.read_bytes()[:HEAD_BYTES] + bytes(9000))
        assert payloads(path) == []


def test_text_that_looks_like_a_frame_is_not_taken_for_one(path):
    """A user may write any bytes; without the segment's salt they have no right CRC."""
    fake = frame(b"fake", salt=b"xxxxxxxx", synced=HEAD_BYTES + 30)
    segment(path, [b"torn " + fake * 20])
    path.write_bytes(path.read_bytes()[:-1])
    assert payloads(path) == []


def test_a_write_that_overtakes_its_reader_is_not_mistaken_for_corruption(path, monkeypatch):
    """The first look finds the frame half written; when later frames are seen behind it, it is whole."""
    segment(path, [b"one" * 9], [b"two"])
    read, looks = os.pread, []

    def torn_at_first(fd: int, size: int, offset: int) -> bytes:
        data = read(fd, size, offset)
        looks.append(offset)
        return data.replace(b"one", b"\0\0\0") if len(looks) == 1 else data

    monkeypatch.setattr(os, "pread", torn_at_first)
    assert payloads(path) == [b"one" * 9, b"two"]
    assert len(looks) > 2


def test_room_that_was_only_allocated_does_not_count_as_written(path):
    offsets = segment(path, [b"x" * 3000], [b"y" * 3000])
    size = path.stat().st_size
    assert written_bytes(path) == size
    assert written_bytes(path, offsets[1]) == size - offsets[1]
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, ROOM)
    assert path.stat().st_size == ROOM
    assert size <= written_bytes(path) <= size + 4096
    assert written_bytes(path, size) == 0
    assert written_bytes(path.with_name("gone.log")) == 0
