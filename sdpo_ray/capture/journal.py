"""The event log on a disk that replicas and jobs share: durable before acknowledged, in the process that serves.

One thread takes whatever waits, writes it in one go, syncs once, and only then resolves the futures: the busier, the
more events share a sync. `capture.writer` says what it writes, `capture.reader` how it is read.
"""

import queue
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

from sdpo_ray.capture.events import encode
from sdpo_ray.capture.reader import SegmentReader
from sdpo_ray.capture.writer import SegmentWriter
from sdpo_ray.errors import LogFull
from sdpo_ray.records import Event

_MAX_BATCH_BYTES = 8 << 20
_MAX_WAITING_BYTES = 64 << 20


class _Append(NamedTuple):
    payload: bytes
    durable: "Future[None]"


class Journal(SegmentReader):
    """An `EventLog` of segments in `directory`, which may be made later. Thread-safe.

    `name` stands in the names of the partitions, for people. A journal that is only read starts no thread.
    """

    def __init__(
        self,
        directory: Path,
        *,
        segment_bytes: int,
        segment_s: float = 60.0,
        max_bytes: int = 4 << 30,
        name: str = "replica",
    ) -> None:
        super().__init__(directory)
        self._writer = SegmentWriter(
            directory, segment_bytes=segment_bytes, segment_s=segment_s, max_bytes=max_bytes, name=name
        )
        self._batch_bytes = min(_MAX_BATCH_BYTES, segment_bytes)
        self._queue: queue.SimpleQueue[_Append | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def append(self, event: Event) -> "Future[None]":
        """As `EventLog.append`. The future may hold LogFull, or the OSError of its batch: a full or broken disk.

        A disk that does not answer holds up the futures, never the caller.
        """
        append = _Append(encode(event), Future())
        # From here on it cannot be cancelled: a client that hangs up must not kill the writer.
        append.durable.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                raise ValueError("the journal is closed")
            if self._waiting_bytes > _MAX_WAITING_BYTES:
                append.durable.set_exception(LogFull(f"{self._waiting_bytes >> 20} MiB wait for the disk"))
                return append.durable
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
                self._thread.start()
            self._waiting_bytes += len(append.payload)
            self._queue.put(append)
        return append.durable

    def close(self) -> None:
        """Write and acknowledge what is queued, seal the segment, stop the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        last = False
        while not last:
            try:
                first = self._queue.get(timeout=self._writer.left_s)
            except queue.Empty:
                self._writer.seal()
                continue
            batch, last = self._take(first)
            if batch:
                self._write(batch)
        self._writer.seal()

    def _take(self, first: _Append | None) -> tuple[list[_Append], bool]:
        """`first` and what waits behind it, and whether the end of the queue was among it."""
        batch: list[_Append] = []
        size, append = 0, first
        while append is not None:
            batch.append(append)
            size += len(append.payload)
            if size >= self._batch_bytes:
                return batch, False
            try:
                append = self._queue.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _write(self, batch: list[_Append]) -> None:
        try:
            self._writer.write([append.payload for append in batch])
        except (OSError, MemoryError) as error:
            for append in batch:
                append.durable.set_exception(error)
        else:
            for append in batch:
                append.durable.set_result(None)
        with self._lock:
            self._waiting_bytes -= sum(len(append.payload) for append in batch)
