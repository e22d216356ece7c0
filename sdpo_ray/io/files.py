"""Atomic, durable files: write under a temporary name, fsync, rename. Directories get a READY marker last.

Readers of a directory call `require_ready`: a directory without the READY marker is incomplete.
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
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(record), indent=1))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    fsync_directory(path.parent)


def read_json(path: Path, kind: type[_Record]) -> _Record:
    """Read a record of type `kind`. Raises FileNotFoundError, or DataError when the file holds something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except msgspec.DecodeError as error:
        raise DataError(f"{path} is not a {kind.__name__}: {error}") from error


@contextmanager
def sealed_directory(final: Path) -> Iterator[Path]:
    """Yield an empty directory beside `final`; on success move it to `final` and write READY last.

    Replaces `final`, and removes what a killed attempt left behind.
    """
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    for file in partial.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    shutil.rmtree(final, ignore_errors=True)
    partial.replace(final)
    (final / READY).touch()
    fsync_directory(final)
    fsync_directory(final.parent)


def is_ready(path: Path) -> bool:
    """Whether the directory has its READY marker."""
    return (path / READY).exists()


def require_ready(path: Path) -> Path:
    """Return `path`. Raises NotReady when the directory has no READY marker."""
    if not is_ready(path):
        raise NotReady(f"{path} has no {READY} marker: it was never finished")
    return path
