"""Write one process's stream of journal segments.

A segment's space is allocated before anything is written to it: syncs get cheaper, and a full disk shows before any
event depends on it. A segment is locked while it is written, so that a reader can tell a live writer from a dead one.
"""

import errno
import fcntl
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sdpo_ray.errors import LogFull
from sdpo_ray.eventlog.journal.segments import HEAD_BYTES, SUFFIX, frame, head
from sdpo_ray.io.files import fsync_directory

_RECHECK_S = 1.0


class SegmentWriter:
    """Writes segments to `directory`. Not thread-safe.

    A segment is sealed when the next write does not fit, when it is `segment_s` seconds old, and after any error.
    `max_bytes` bounds the size of all segments in the directory, those of other processes included.
    """

    def __init__(self, directory: Path, *, segment_bytes: int, segment_s: float, max_bytes: int, name: str) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._segment_s = segment_s
        self._max_bytes = max_bytes
        # Time first, so that names sort by age; the random part makes them unique when the clock steps back.
        self._stream = f"{time.time_ns():020d}-{name}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._created_directory = False
        self._sequence = 0
        self._full_until = -float("inf")
        self._fd = -1
        self._path = directory
        self._salt = b""
        self._synced = self._size = 0
        self._opened_at = 0.0

    @property
    def left_s(self) -> float | None:
        """Seconds until the open segment has to be sealed, by the monotonic clock; None when none is open."""
        return max(0.0, self._opened_at + self._segment_s - time.monotonic()) if self._fd >= 0 else None

    def write(self, payloads: Sequence[bytes]) -> None:
        """Append the payloads and wait until they are on disk. Raises OSError (LogFull): then none was acknowledged."""
        size = sum(map(len, payloads)) + len(payloads) * len(frame(b"", salt=b"", synced=0))
        if self._fd >= 0 and (self._synced + size > self._size or not self.left_s):
            self.seal()
        if self._fd < 0:
            self._open(HEAD_BYTES + size)
        try:
            self._sync(b"".join([frame(each, salt=self._salt, synced=self._synced) for each in payloads]))
        except OSError:
            # After a failed sync the kernel may have dropped the pages, so this segment is not written again.
            self._abandon()
            raise

    def seal(self) -> None:
        """Release the unused space and the lock. The next write starts a new segment."""
        if self._fd < 0:
            return
        # If this fails, the zeros at the end do not disturb a reader, and are deleted with the segment.
        with suppress(OSError):
            os.ftruncate(self._fd, self._synced)
        os.close(self._fd)
        self._fd = -1

    def _open(self, size: int) -> None:
        size = max(size, self._segment_bytes)
        if not self._created_directory:
            # Only once: a directory that disappears later is an unmounted volume, and must not be created again.
            _make_directory(self._directory)
            self._created_directory = True
        self._require_room(size)
        self._create()
        try:
            _allocate(self._fd, size)
            self._salt, self._synced, self._size = os.urandom(8), 0, size
            self._sync(head(self._salt))
            fsync_directory(self._directory)
        except OSError:
            self._abandon()
            raise
        self._opened_at = time.monotonic()

    def _create(self) -> None:
        """Create a locked, empty segment; again if a reader deleted it as a dead writer's before it was locked."""
        while self._fd < 0:
            self._path = self._directory / f"{self._stream}.{self._sequence:08d}{SUFFIX}"
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            self._sequence += 1
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if os.fstat(fd).st_nlink:
                    self._fd = fd
            finally:
                if self._fd < 0:
                    os.close(fd)

    def _require_room(self, size: int) -> None:
        now = time.monotonic()
        if now >= self._full_until:
            if _used_bytes(self._directory) + size <= self._max_bytes:
                return
            # The check costs one call per segment, and nothing signals free space, so check at most once a second.
            self._full_until = now + _RECHECK_S
        raise LogFull(f"the journal in {self._directory} may take {self._max_bytes >> 20} MiB, and does")

    def _sync(self, data: bytes) -> None:
        rest, end = memoryview(data), self._synced + len(data)
        while rest:
            rest = rest[os.pwrite(self._fd, rest, end - len(rest)) :]
        os.fdatasync(self._fd)
        self._synced = end

    def _abandon(self) -> None:
        empty = self._synced <= HEAD_BYTES
        self.seal()
        if empty:
            # If this fails, the next truncation deletes it.
            with suppress(OSError):
                self._path.unlink()


def _make_directory(directory: Path) -> None:
    """Create the directory and its parents, durably."""
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for each in missing:
        fsync_directory(each.parent)


def _allocate(fd: int, size: int) -> None:
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        # This file system cannot allocate: the file grows with each write.


def _used_bytes(directory: Path) -> int:
    """Size of all segments in the directory."""
    used = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX):
                with suppress(FileNotFoundError):
                    used += entry.stat().st_size
    return used
