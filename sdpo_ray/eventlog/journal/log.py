"""The journal: an event log on a disk that replicas and jobs share, written by the serving process itself.

One thread takes all waiting events, writes them at once, syncs once, and then resolves their futures (group commit): at
higher load more events share a sync. See `eventlog.journal.writer` and `eventlog.journal.reader`.
"""

import queue
import threading
from concurrent.futures import Future
from pathlib import Path

from sdpo_ray.errors import LogFull
from sdpo_ray.eventlog.codec import encode
from sdpo_ray.eventlog.journal.reader import SegmentReader
from sdpo_ray.eventlog.journal.writer import SegmentWriter
from sdpo_ray.records import Event

_MAX_BATCH_BYTES = 8 << 20
_MAX_WAITING_BYTES = 64 << 20


class _Group:
    """Events that share a sync and a future. A future for each event would cost more than writing it."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.size = 0
        self.durable: Future[None] = Future()
        # From here on it cannot be cancelled: a client that disconnects must not break the writer.
        self.durable.set_running_or_notify_cancel()


class JournalLog(SegmentReader):
    """An `EventLog` of segment files in `directory`, which is created by the first write. Thread-safe.

    `name` is part of the partitions' names, for operators. A journal that is only read starts no thread.
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
        self._queue: queue.SimpleQueue[_Group | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._group: _Group | None = None
        """The group that takes further events; groups before it in the queue are full."""
        self._waiting_bytes = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def append(self, event: Event) -> "Future[None]":
        """See `EventLog.append`. The future may hold LogFull, or the OSError of its group: a full or broken disk.

        A disk that does not respond delays the futures, not the caller.
        """
        payload = encode(event)
        with self._lock:
            if self._closed:
                raise ValueError("the journal is closed")
            if self._waiting_bytes > _MAX_WAITING_BYTES:
                failed: Future[None] = Future()
                failed.set_exception(LogFull(f"{self._waiting_bytes >> 20} MiB wait for the disk"))
                return failed
            group = self._group
            if group is None or group.size >= self._batch_bytes:
                group = self._group = _Group()
                self._queue.put(group)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
                self._thread.start()
            group.payloads.append(payload)
            group.size += len(payload)
            self._waiting_bytes += len(payload)
        return group.durable

    def close(self) -> None:
        """Write and acknowledge the queued events, seal the segment, stop the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                group = self._queue.get(timeout=self._writer.left_s)
            except queue.Empty:
                self._writer.seal()
                continue
            if group is None:
                break
            with self._lock:
                if self._group is group:
                    self._group = None
            self._write(group)
        self._writer.seal()

    def _write(self, group: _Group) -> None:
        try:
            self._writer.write(group.payloads)
        except (OSError, MemoryError) as error:
            group.durable.set_exception(error)
        else:
            group.durable.set_result(None)
        with self._lock:
            self._waiting_bytes -= group.size
