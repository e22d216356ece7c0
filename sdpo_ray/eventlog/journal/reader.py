"""Read and truncate the journals of all processes in one directory.

A partition is the stream of segments that one process wrote in its life. So the table that keeps the positions has one
per process, not one per segment. A position is a segment number and an offset in that segment.
"""

import fcntl
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sdpo_ray.errors import CorruptLog
from sdpo_ray.eventlog.codec import decode
from sdpo_ray.eventlog.journal.segments import SUFFIX, frames, written_bytes
from sdpo_ray.eventlog.protocol import Batch
from sdpo_ray.records import Event

_OFFSET_BITS = 36
"""Bits of a position for the offset, enough for segments of 64 GiB; 27 bits are left for the segment number."""


class SegmentReader:
    """Reads and truncates the segments in `directory`. Safe in any number of processes at once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._polls = 0

    def partitions(self) -> list[str]:
        """Names of the streams, oldest writer first."""
        return list(self._streams())

    def poll(self, after: Mapping[str, int], *, max_events: int, max_bytes: int) -> Batch:
        """See `EventLog.poll`: one event of each stream in turn, up to the limits.

        A stream of `after` that no longer exists was stored and removed by another ingest, and counts as at its end.
        """
        streams = self._streams()
        at_end = set(after.keys() - streams.keys())
        events: list[Event] = []
        positions: dict[str, int] = {}
        num_bytes, full = 0, False
        # Start with another stream in each poll, since the limits may not leave room for all streams.
        self._polls += 1
        turns = deque((name, self._frames(name, streams[name], after.get(name, 0))) for name in streams)
        turns.rotate(-self._polls)
        while turns:
            name, stream = turns.popleft()
            payload, position = next(stream, (None, 0))
            if payload is None:
                at_end.add(name)
                continue
            full = full or (bool(events) and (len(events) >= max_events or num_bytes + len(payload) > max_bytes))
            if not full:
                events.append(_decoded(payload, name, position))
                positions[name] = position
                num_bytes += len(payload)
                turns.append((name, stream))
        return Batch(events=tuple(events), positions=positions, at_end=frozenset(at_end))

    def truncate(self, upto: Mapping[str, int]) -> None:
        """Delete every segment that holds nothing after its position and that no live process writes."""
        for name, sequences in self._streams().items():
            for sequence, offset in _offsets(sequences, upto.get(name, 0)):
                _remove_read(self._path(name, sequence), offset)

    def backlog_bytes(self, after: Mapping[str, int]) -> int:
        """See `EventLog.backlog_bytes`; exact to a block of the file system. Space only allocated does not count."""
        return sum(
            written_bytes(self._path(name, sequence), offset)
            for name, sequences in self._streams().items()
            for sequence, offset in _offsets(sequences, after.get(name, 0))
            if offset is not None
        )

    def _frames(self, name: str, sequences: Sequence[int], after: int) -> Iterator[tuple[bytes, int]]:
        for sequence, offset in _offsets(sequences, after):
            if offset is not None:
                for payload, end in frames(self._path(name, sequence), offset):
                    yield payload, sequence << _OFFSET_BITS | end

    def _streams(self) -> dict[str, list[int]]:
        """Segment numbers of each stream, ascending. A segment with a successor in the list is sealed."""
        streams: dict[str, list[int]] = {}
        for path in sorted(self._directory.glob(f"*{SUFFIX}")):
            name, _, sequence = path.stem.rpartition(".")
            if name and sequence.isdigit():
                streams.setdefault(name, []).append(int(sequence))
        return streams

    def _path(self, name: str, sequence: int) -> Path:
        return self._directory / f"{name}.{sequence:08d}{SUFFIX}"


def _offsets(sequences: Sequence[int], position: int) -> Iterator[tuple[int, int | None]]:
    """Each segment with the offset to read it from; None when all of it lies before the position."""
    read, offset = position >> _OFFSET_BITS, position & ((1 << _OFFSET_BITS) - 1)
    for sequence in sequences:
        yield sequence, None if sequence < read else offset if sequence == read else 0


def _decoded(payload: bytes, name: str, position: int) -> Event:
    try:
        return decode(payload)
    except CorruptLog as error:
        raise CorruptLog(f"{name}: the frame before position {position} is {error}") from error


def _remove_read(path: Path, offset: int | None) -> None:
    try:
        # Opened for writing, since NFS grants exclusive locks only on such files.
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if offset is None or next(frames(path, offset), None) is None:
            path.unlink(missing_ok=True)
    except BlockingIOError:
        return
    finally:
        os.close(fd)
