"""The segments of a journal on disk: their format, how they are read, and when they go.

    segment = frame*        frame = "SDTJ" · length u32 · crc32 u32 · synced u64 · payload      (little endian)

The payload is a `Turn` in MessagePack: JSON would turn a log-prob that is NaN into null. `synced` is the length
of the segment that was on disk when the frame was written. It tells a torn tail from corruption: a broken frame
was once acknowledged exactly when a whole frame behind it says so. The CRC covers `synced` and payload.
"""

import fcntl
import os
import struct
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from sdpo_ray.errors import CorruptJournal, DataError
from sdpo_ray.records import Turn

SUFFIX = ".log"
_MAGIC = b"SDTJ"
_HEADER = struct.Struct("<4sIIQ")
_SYNCED = struct.Struct("<Q")
_MAX_LOOKS = 1000


class SegmentLog:
    """What the journals in one directory hold, whoever writes them. A partition is a segment."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def ends(self) -> dict[str, int]:
        """Lengths of all segments at one moment, oldest segment first.

        One moment, because a follow-up must never be seen before the answer that it follows: that answer was on
        disk first, but perhaps in another replica's segment. Raises TimeoutError while the log does not hold still.
        """
        before = self._lengths()
        for _ in range(_MAX_LOOKS):
            after = self._lengths()
            if after == before:
                return after
            before = after
        raise TimeoutError(f"{self._directory} did not hold still for {_MAX_LOOKS} looks")

    def read(self, partition: str, after: int, until: int) -> tuple[list[Turn], int]:
        """Turns of one segment behind offset `after`, and the offset to go on from. Raises CorruptJournal.

        A segment that is gone since `ends` was shipped by another reader: nothing is left to read of it.
        """
        try:
            return read_segment(self._path(partition), after, until)
        except FileNotFoundError:
            return [], after

    def truncate(self, positions: Mapping[str, int]) -> int:
        """Remove the segments that `positions` has left behind; return how many.

        The caller has made sure that what it read is on disk elsewhere. A segment that a living writer holds stays.
        """
        return sum(_remove_shipped(self._path(partition), position) for partition, position in positions.items())

    def _lengths(self) -> dict[str, int]:
        lengths = {}
        for path in segments(self._directory):
            with suppress(FileNotFoundError):
                lengths[path.stem] = path.stat().st_size
        return lengths

    def _path(self, partition: str) -> Path:
        return self._directory / f"{partition}{SUFFIX}"


def segments(directory: Path) -> list[Path]:
    """All segments in `directory`, oldest first; none when there is no such directory."""
    return sorted(directory.glob(f"*{SUFFIX}"))


def read_segment(path: Path, offset: int = 0, until: int | None = None) -> tuple[list[Turn], int]:
    """The turns whose frames lie in [offset, until), and the offset of the first byte not read.

    A torn tail is no error: it was never acknowledged, and reading stops before it. Raises CorruptJournal when a
    frame that was acknowledged does not check out, or holds something other than a Turn.
    """
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read() if until is None else file.read(max(0, until - offset))
    turns: list[Turn] = []
    position = 0
    while (payload := _payload(data, position)) is not None:
        try:
            turns.append(msgspec.msgpack.decode(payload, type=Turn))
        except msgspec.DecodeError as error:
            raise CorruptJournal(f"{path.name}: offset {offset + position} is not a Turn: {error}") from error
        position += _HEADER.size + len(payload)
    if _synced_later(data, position) > offset + position:
        raise CorruptJournal(f"{path.name}: the frame at offset {offset + position} is broken, those after it are not")
    return turns, offset + position


def encode_turn(turn: Turn) -> bytes:
    """The payload of a frame. Raises DataError for a value that no frame can hold, such as a lone surrogate."""
    try:
        return msgspec.msgpack.encode(turn)
    except (UnicodeEncodeError, OverflowError) as error:
        raise DataError(f"{turn.turn_id} cannot be written: {error}") from error


def frame(payload: bytes, synced: int) -> bytes:
    """`payload` as it stands in a segment whose first `synced` bytes are on disk."""
    return _HEADER.pack(_MAGIC, len(payload), _crc(synced, payload), synced) + payload


def _payload(data: bytes, position: int) -> bytes | None:
    """The payload of the frame at `position`, or None where no whole and sound frame stands."""
    if len(data) - position < _HEADER.size:
        return None
    magic, length, crc, synced = _HEADER.unpack_from(data, position)
    start = position + _HEADER.size
    payload = data[start : start + length]
    return payload if magic == _MAGIC and len(payload) == length and crc == _crc(synced, payload) else None


def _synced_later(data: bytes, position: int) -> int:
    """The largest `synced` of any sound frame behind the broken one at `position`; 0 when there is none."""
    synced = 0
    while (position := data.find(_MAGIC, position + 1)) >= 0:
        if _payload(data, position) is not None:
            synced = max(synced, _HEADER.unpack_from(data, position)[3])
    return synced


def _crc(synced: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(_SYNCED.pack(synced)))


def _remove_shipped(path: Path, position: int) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # An empty segment may be one whose writer has created it and not locked it yet.
        if os.fstat(fd).st_size == 0 or read_segment(path, position)[0]:
            return False
        path.unlink()
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
