"""Atomic, durable files: write to a temporary name, fsync, rename; a directory gets its READY marker last.

Readers of a directory call `require_ready`: a directory without its READY marker is incomplete, whatever it contains.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from sdpo_ray.errors import DataError, NotReady

READY = "READY"
_Record = TypeVar("_Record")


def fsync_directory(path: Path) -> None:
    """Make renames and creations in `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_json(path: Path, record: object) -> None:
    """Replace `path` by the JSON of `record`, atomically and durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(record), indent=1))
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    fsync_directory(path.parent)


def read_json(path: Path, kind: type[_Record]) -> _Record:
    """Read a record back. Raises FileNotFoundError, or DataError when the file is not a `kind`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise DataError(f"{path} is not a {kind.__name__}: {error}") from error


@contextmanager
def sealed_directory(final: Path) -> Iterator[Path]:
    """Yield an empty directory beside `final`; on success move it there, READY written last.

    What an earlier, killed attempt left behind is removed.
    """
    aside = final.with_name(f".{final.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    for file in aside.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    shutil.rmtree(final, ignore_errors=True)
    aside.replace(final)
    (final / READY).touch()
    fsync_directory(final)
    fsync_directory(final.parent)


def is_ready(path: Path) -> bool:
    return (path / READY).exists()


def require_ready(path: Path) -> Path:
    """Return `path` when it was handed over whole. Raises NotReady."""
    if not is_ready(path):
        raise NotReady(f"{path} has no {READY} marker: it was never finished")
    return path
