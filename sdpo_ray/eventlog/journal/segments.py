"""A segment of the journal on disk: its format, and what can be read of it while it is written, or after a crash.

    segment = head · frame* · zeros       head  = "SDPOLOG1" · salt · crc32 u32
                                          frame = "SDTJ" · length u32 · crc32 u32 · synced u64 · payload

All little endian. The head is on disk before the first frame. `synced` is how far the segment was on disk when the
frame was written, which tells a torn tail from corruption: a broken frame was acknowledged exactly when a sound frame
behind it says so. A frame's CRC covers payload, salt and `synced`; the salt is random, so that no user can write text
that passes for a frame. The zeros are room that was allocated in advance; a sealed segment has none.
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
    """`payload` as it stands in a segment whose first `synced` bytes are on disk."""
    return _FRAME.pack(_MAGIC, len(payload), _crc(payload, salt, synced), synced) + payload


def frames(path: Path, offset: int = 0) -> Iterator[tuple[bytes, int]]:
    """The payloads from `offset` on, each with the offset behind it, up to what is torn or not written yet.

    `offset` is 0 or one that this gave. A file that is gone has no more of them. Raises CorruptLog at a frame that was
    acknowledged and does not check out.
    """
    with suppress(FileNotFoundError):
        segment = _Segment(path)
        salt = segment.salt()
        position = max(offset, HEAD_BYTES)
        while salt and (payload := segment.payload(position, salt)) is not None:
            position += _FRAME.size + len(payload)
            yield payload, position


def written_bytes(path: Path, offset: int = 0) -> int:
    """About how many bytes were written behind `offset`: to the block."""
    with suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
        if os.pread(file.fileno(), 4, offset) in (_MAGIC, _FORMAT[:4]):
            return os.lseek(file.fileno(), offset, os.SEEK_HOLE) - offset
    return 0


class _Segment:
    """One reading of a segment, by chunks. It holds no file open: a log may have more segments than we may open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = 0
        self._chunk = b""

    def salt(self) -> bytes:
        """Empty while there is no head, and nothing behind it."""
        salt = self._salt()
        if not salt and any(chunk.count(0) < len(chunk) for _, chunk in self._data(HEAD_BYTES)):
            # The head may have come since we looked, and was there before what we saw behind it.
            salt = self._salt()
            if not salt:
                raise CorruptLog(f"{self._path.name}: the head is broken, or of another release")
        return salt

    def payload(self, position: int, salt: bytes) -> bytes | None:
        """Of the frame at `position`; None where none was acknowledged."""
        payload = self._payload(position, salt)
        if payload is None and self._acknowledged(position, salt):
            # As with the head: by now it is whole, if it ever was.
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
        """Whether a sound frame behind the broken one at `position` says that the latter was on disk before it."""
        rest = b""
        for start, chunk in self._data(position + 1):
            window, at = rest + chunk, -1
            while (at := window.find(_MAGIC, at + 1)) >= 0:
                found = start - len(rest) + at
                header = self._bytes(found, _FRAME.size)
                if len(header) == _FRAME.size and position < _FRAME.unpack(header)[3] <= found:
                    self._chunk = b""
                    if self._payload(found, salt) is not None:
                        return True
            rest = chunk[1 - len(_MAGIC) :]
        return False

    def _data(self, position: int) -> Iterator[tuple[int, bytes]]:
        """What was written from `position` on, by chunks; room that was only allocated is passed over unread."""
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
        """As many of them as the file has."""
        at = position - self._start
        if at < 0 or at + length > len(self._chunk):
            with self._path.open("rb", buffering=0) as file:
                room = max(0, os.fstat(file.fileno()).st_size - position)
                self._chunk = os.pread(file.fileno(), min(max(length, _CHUNK_BYTES), room), position)
            self._start, at = position, 0
        return self._chunk[at : at + length]


def _crc(payload: bytes, salt: bytes, synced: int) -> int:
    return zlib.crc32(salt + _SYNCED.pack(synced), zlib.crc32(payload))
