"""An append-only log of turns in the process that answers them: durable before acknowledged.

One thread takes whatever is queued, writes it in one go, calls fdatasync, and only then resolves the futures.
A segment is sealed by size, or when writing to it failed; no process ever appends to a segment that another one
began. The format of a segment, and the reading side, is `capture.segments`.
"""

import fcntl
import os
import queue
import threading
import time
import uuid
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from sdpo_ray.capture.segments import SUFFIX, encode_turn, frame
from sdpo_ray.records import Turn
from sdpo_ray.storage import fsync_directory

_MAX_BATCH_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class _Append:
    payload: bytes
    durable: "Future[None]"


class Journal:
    """Appends turns to segments in `directory`. Thread-safe; `close` writes what is queued.

    `name` stands in the names of the segments, for people.
    """

    def __init__(self, directory: Path, *, segment_bytes: int, name: str = "replica") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._writer = _Writer(directory, segment_bytes, name)
        self._queue: queue.SimpleQueue[_Append | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def append(self, turn: Turn) -> "Future[None]":
        """Queue `turn`. The future is done once the turn is on disk, or holds the OSError of its batch.

        Raises DataError for text that has no UTF-8 form, ValueError once the journal is closed.
        """
        append = _Append(encode_turn(turn), Future())
        # From here on it cannot be cancelled: a client that hangs up must not kill the writer.
        append.durable.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                raise ValueError("the journal is closed")
            self._queue.put(append)
        return append.durable

    def close(self) -> None:
        """Write and acknowledge what is queued, seal the segment, stop the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, last = self._take(first)
            try:
                self._writer.write([append.payload for append in batch])
            except OSError as error:
                for append in batch:
                    append.durable.set_exception(error)
            else:
                for append in batch:
                    append.durable.set_result(None)
            if last:
                break
        self._writer.seal()

    def _take(self, first: _Append) -> tuple[list[_Append], bool]:
        """What waits behind `first`, and whether the end of the queue was among it."""
        batch, size = [first], len(first.payload)
        while size < _MAX_BATCH_BYTES:
            try:
                append = self._queue.get_nowait()
            except queue.Empty:
                break
            if append is None:
                return batch, True
            batch.append(append)
            size += len(append.payload)
        return batch, False


class _Writer:
    """The segment being written. Used by the journal's thread alone."""

    def __init__(self, directory: Path, segment_bytes: int, name: str) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        # Time first, so that names sort by age; the random part makes them unique when the clock steps back.
        self._name = f"{time.time_ns():020d}-{name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._sequence = 0
        self._fd = -1
        self._path = directory
        self._synced = 0

    def write(self, payloads: list[bytes]) -> None:
        """Append the payloads and wait until they are on disk. After an OSError none of them counts."""
        try:
            if self._fd < 0:
                self._open()
            rest = memoryview(b"".join(frame(payload, self._synced) for payload in payloads))
            written = 0
            while written < len(rest):
                written += os.write(self._fd, rest[written:])
            os.fdatasync(self._fd)
        except OSError:
            self._abandon()
            raise
        self._synced += written
        if self._synced >= self._segment_bytes:
            self.seal()

    def seal(self) -> None:
        """Close the segment; closing releases its lock. The next write begins a new one."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        self._path = self._directory / f"{self._name}-{self._sequence:06d}{SUFFIX}"
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._sequence += 1
        self._synced = 0
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        fsync_directory(self._directory)

    def _abandon(self) -> None:
        # After a failed fdatasync the kernel may have dropped the pages, so this segment is never written again.
        if self._fd < 0:
            return
        try:
            os.ftruncate(self._fd, self._synced)
            if self._synced == 0:
                self._path.unlink()
        except OSError:
            pass  # What stays is a torn tail, which no reader counts.
        self.seal()
