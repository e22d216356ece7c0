"""Copy a run to another directory while it serves and learns; a run can go on from the copy."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from sdpo_ray.errors import ConfigError
from sdpo_ray.io.files import sealed_directory
from sdpo_ray.io.paths import Layout

MLFLOW = "mlflow.db"
_SQLITE = ("-wal", "-shm", "-journal")


def back_up(layout: Layout, to: Path, keys_to: Path | None, on_file: Callable[[int, int], None]) -> int:
    """Copy the run; returns the number of files. `on_file(done, total)` is called after each.

    Hold `io.locks.data_lock`. Raises ConfigError where `to` holds anything already.
    """
    if to.exists() and any(to.iterdir()):
        raise ConfigError(f"{to} is not empty: name a directory that does not exist yet")
    secrets = secret_files(layout)
    files = [file for file in _files(layout) if file not in secrets]
    total = len(files) + (len(secrets) if keys_to is not None else 0)
    with sealed_directory(to) as draft:
        for done, file in enumerate(files, start=1):
            target = draft / file.relative_to(layout.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.name == MLFLOW:
                _copy_database(file, target)
            else:
                shutil.copy2(file, target)
            on_file(done, total)
    if keys_to is not None:
        keys_to.mkdir(parents=True, exist_ok=True, mode=0o700)
        for done, file in enumerate(secrets, start=len(files) + 1):
            shutil.copy2(file, keys_to / file.name)
            on_file(done, total)
    return total


def secret_files(layout: Layout) -> list[Path]:
    """What is kept apart from the data that it opens."""
    named = (layout.eval_key, layout.canary_key, layout.pseudonym_keys, layout.api_keys)
    return [path for path in named if path.exists()]


def _files(layout: Layout) -> Iterator[Path]:
    # The journal is listed once, and first: a segment that has a successor in the list has its end on disk, and one
    # that has none may be torn, as after a crash.
    journal = sorted(layout.journal.rglob("*")) if layout.journal.exists() else []
    rest = (
        Path(folder) / name
        for folder, _, names in sorted(os.walk(layout.root))
        if not Path(folder).is_relative_to(layout.journal)
        for name in sorted(names)
    )
    for file in (*journal, *rest):
        hidden = any(part.startswith(".") for part in file.relative_to(layout.root).parts)
        if file.is_file() and not hidden and not file.name.endswith((".lock", *(MLFLOW + end for end in _SQLITE))):
            yield file


def _copy_database(source: Path, target: Path) -> None:
    """SQLite's own backup: whole, whatever MLflow writes meanwhile (sqlite.org/backup.html)."""
    reading, writing = sqlite3.connect(source), sqlite3.connect(target)
    try:
        reading.backup(writing)
    finally:
        reading.close()
        writing.close()
