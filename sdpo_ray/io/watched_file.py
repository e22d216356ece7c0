"""Files that other processes replace: a stamp that tells versions apart, and a cached content that follows the file.

Also `write_private`, which replaces a file of secrets whole.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import msgspec

from sdpo_ray.errors import DataError
from sdpo_ray.io.files import fsync_directory

logger = logging.getLogger(__name__)
_Content = TypeVar("_Content")


class FileStamp(NamedTuple):
    """Differs between two versions of a file that is replaced whole, as `write_json` does."""

    modified_ns: int
    inode: int
    size: int


def file_stamp(path: Path) -> FileStamp | None:
    """Stamp of the file as of now, by one `stat`; None where there is no file. Raises OSError for other failures."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return FileStamp(found.st_mtime_ns, found.st_ino, found.st_size)


class WatchedFile(Generic[_Content]):
    """Content of a file as `load` returns it, loaded again when the file's stamp changes.

    While the file is missing or unreadable, the last content stays: API keys remain required when their file is
    deleted. With `keep_last=False`, `load` is called for a missing file too, and has to return a value for it.
    """

    def __init__(self, path: Path, load: Callable[[Path], _Content], *, keep_last: bool = True) -> None:
        self._path = path
        self._load = load
        self._keep_last = keep_last
        # Before `load`: a replacement in between is loaded by the next `now`.
        self._stamp = self._current_stamp()
        self._content = load(path)

    def now(self) -> _Content:
        """Return the current content. Costs one `stat` while the file is unchanged."""
        stamp = self._current_stamp()
        if stamp == self._stamp or (stamp is None and self._keep_last):
            return self._content
        self._stamp = stamp
        try:
            self._content = self._load(self._path)
        except (OSError, DataError):
            logger.exception("%s cannot be read; its last content stays in use", self._path)
        return self._content

    def _current_stamp(self) -> FileStamp | None:
        try:
            return file_stamp(self._path)
        except OSError:
            return None


def write_private(path: Path, record: object) -> None:
    """Replace `path` by the JSON of `record`, atomically and durably, mode 0600. Call it inside `locks.file_lock`."""
    partial = path.with_name(f".{path.name}.aside")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(record), indent=1))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    fsync_directory(path.parent)
