"""Format of a journal segment, and how to read one while it is written or after a crash.

    segment = head · frame* · zeros       head  = "SDPOLOG1" · salt · crc32 u32
                                          frame = "SDTJ" · length u32 · crc32 u32 · synced u64 · payload

All little endian. The head is on disk before the first frame. `synced` is the number of bytes of the segment that were
on disk when the frame was written. It tells a torn tail from corruption: a broken frame was acknowledged exactly when
the `synced` of a valid frame after it covers it. A frame's CRC covers payload, salt and `synced`; the salt is random,
so that no user can write text that passes for a frame. The zeros are space allocated in advance; sealed segments have
none.
"""

import errno
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sdpo_ray.errors import CorruptLog

SUFFIX = ".log"
_MAGIC, _FORMAT = b"SDTJ", b"SDPOLOG1"
_FRAME = struct.Struct("<4sIIQ")
_HEAD = struct.Struct("<8s8sI")
_SYNCED = struct.Struct("<Q")
_CHUNK_BYTES = 256 << 10
HEAD_BYTES = _HEAD.size


def head(salt: bytes) -> bytes:
    """The first bytes of a segment; `salt` is 8 random bytes."""
    return _HEAD.pack(_FORMAT, salt, zlib.crc32(_FORMAT + salt))


def frame(payload: bytes, *, salt: bytes, synced: int) -> bytes:
    """The frame of `payload` for a segment whose first `synced` bytes are on disk."""
    return _FRAME.pack(_MAGIC, len(payload), _crc(payload, salt, synced), synced) + payload


def frames(path: Path, offset: int = 0) -> Iterator[tuple[bytes, int]]:
    """Yield the payloads from `offset` on, each with the offset after it, up to a torn frame or unwritten space.

    `offset` is 0 or an offset that this function yielded. A missing file has no payloads. Raises CorruptLog at an
    acknowledged frame that fails its checksum.
    """
    with suppress(FileNotFoundError):
        segment = _Segment(path)
        salt = segment.salt()
        position = max(offset, HEAD_BYTES)
        while salt and (payload := segment.payload(position, salt)) is not None:
            position += _FRAME.size + len(payload)
            yield payload, position


def written_bytes(path: Path, offset: int = 0) -> int:
    """Number of bytes written after `offset`, exact to a block of the file system."""
    with suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
        if os.pread(file.fileno(), 4, offset) in (_MAGIC, _FORMAT[:4]):
            return os.lseek(file.fileno(), offset, os.SEEK_HOLE) - offset
    return 0


class _Segment:
    """Reads one segment in chunks. Keeps no file open: a log may have more segments than a process may open files."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = 0
        self._chunk = b""

    def salt(self) -> bytes:
        """Salt of the head; empty while there is neither a head nor anything after it. Raises CorruptLog."""
        salt = self._salt()
        if not salt and any(chunk.count(0) < len(chunk) for _, chunk in self._data(HEAD_BYTES)):
            # Read once more: the head may have been written since the first look, and is on disk before any frame.
            salt = self._salt()
            if not salt:
                raise CorruptLog(f"{self._path.name}: the head is broken, or of another release")
        return salt

    def payload(self, position: int, salt: bytes) -> bytes | None:
        """Payload of the frame at `position`; None when no frame was acknowledged there. Raises CorruptLog."""
        payload = self._payload(position, salt)
        if payload is None and self._acknowledged(position, salt):
            # Read once more, as for the head: an acknowledged frame is complete by now.
            self._chunk = b""
            payload = self._payload(position, salt)
            if payload is None:
                raise CorruptLog(f"{self._path.name}: the frame at offset {position} is broken, those after it are not")
        return payload

    def _salt(self) -> bytes:
        self._chunk = b""
        data = self._bytes(0, HEAD_BYTES)
        if len(data) < HEAD_BYTES:
            return b""
        salt: bytes = _HEAD.unpack(data)[1]
        return salt if data == head(salt) else b""

    def _payload(self, position: int, salt: bytes) -> bytes | None:
        header = self._bytes(position, _FRAME.size)
        if len(header) < _FRAME.size or not header.startswith(_MAGIC):
            return None
        _, length, crc, synced = _FRAME.unpack(header)
        payload = self._bytes(position + _FRAME.size, length)
        return payload if len(payload) == length and crc == _crc(payload, salt, synced) else None

    def _acknowledged(self, position: int, salt: bytes) -> bool:
        """Whether `synced` of a valid frame after the broken one at `position` says that it was on disk before."""
        rest = b""
        for start, chunk in self._data(position + 1):
            window, at = rest + chunk, -1
            while (at := window.find(_MAGIC, at + 1)) >= 0:
                candidate = start - len(rest) + at
                header = self._bytes(candidate, _FRAME.size)
                if len(header) == _FRAME.size and position < _FRAME.unpack(header)[3] <= candidate:
                    self._chunk = b""
                    if self._payload(candidate, salt) is not None:
                        return True
            rest = chunk[1 - len(_MAGIC) :]
        return False

    def _data(self, position: int) -> Iterator[tuple[int, bytes]]:
        """Written data from `position` on, in chunks with their offsets. Skips space that is only allocated."""
        with self._path.open("rb", buffering=0) as file:
            fd = file.fileno()
            while True:
                try:
                    position = os.lseek(fd, position, os.SEEK_DATA)
                    end = os.lseek(fd, position, os.SEEK_HOLE)
                except OSError as error:
                    if error.errno == errno.ENXIO:
                        return
                    raise
                while position < end and (chunk := os.pread(fd, min(_CHUNK_BYTES, end - position), position)):
                    yield position, chunk
                    position += len(chunk)

    def _bytes(self, position: int, length: int) -> bytes:
        """Up to `length` bytes at `position`; fewer at the end of the file."""
        at = position - self._start
        if at < 0 or at + length > len(self._chunk):
            with self._path.open("rb", buffering=0) as file:
                room = max(0, os.fstat(file.fileno()).st_size - position)
                self._chunk = os.pread(file.fileno(), min(max(length, _CHUNK_BYTES), room), position)
            self._start, at = position, 0
        return self._chunk[at : at + length]


def _crc(payload: bytes, salt: bytes, synced: int) -> int:
    return zlib.crc32(salt + _SYNCED.pack(synced), zlib.crc32(payload))
