"""Small files of secrets: readable by their owner alone, replaced whole, followed while they change."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from sdpo_ray.errors import DataError
from sdpo_ray.io.files import fsync_directory

logger = logging.getLogger(__name__)
_Content = TypeVar("_Content")


class WatchedFile(Generic[_Content]):
    """What `load` makes of a file, and makes again whenever the file was replaced.

    While the file is missing or broken, what it said before holds: a door that was closed does not open because a
    file went away.
    """

    def __init__(self, path: Path, load: Callable[[Path], _Content]) -> None:
        self._path = path
        self._load = load
        self._content = load(path)
        # What `load` made itself is read once more, which is harmless.
        self._seen: tuple[int, int, int] | None = None

    def now(self) -> _Content:
        """The content as of now, at the price of one `stat`."""
        try:
            found = os.stat(self._path)
        except OSError:
            return self._content
        stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._content = self._load(self._path)
            except (OSError, DataError):
                logger.exception("%s cannot be read; what it said before holds", self._path)
        return self._content


def write_private(path: Path, record: object) -> None:
    """Replace `path` by the JSON of `record`, atomically and durably, mode 0600. Call it in `storage.changing`."""
    aside = path.with_name(f".{path.name}.aside")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(record), indent=1))
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    fsync_directory(path.parent)
