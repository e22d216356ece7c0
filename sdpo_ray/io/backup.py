"""Back up a run while it serves and learns; a run can continue from the copy."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from sdpo_ray.errors import ConfigError
from sdpo_ray.io.files import sealed_directory
from sdpo_ray.io.paths import Layout

MLFLOW = "mlflow.db"
_NOT_COPIED = (".lock", *(f"{MLFLOW}{suffix}" for suffix in ("-wal", "-shm", "-journal")))


def back_up(layout: Layout, to: Path, keys_to: Path | None, on_file: Callable[[int, int], None]) -> int:
    """Copy the run to `to`, and its secret files to `keys_to` unless that is None. Returns the number of files.

    `on_file(done, total)` is called after each file. Hold `io.locks.data_lock`. Raises ConfigError when `to` is not
    empty.
    """
    if to.exists() and any(to.iterdir()):
        raise ConfigError(f"{to} is not empty: name a directory that does not exist yet")
    secrets = secret_files(layout)
    files = [file for file in _files(layout) if file not in secrets]
    total = len(files) + (len(secrets) if keys_to is not None else 0)
    with sealed_directory(to) as partial:
        for done, file in enumerate(files, start=1):
            target = partial / file.relative_to(layout.root)
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
    """Files with keys, which a backup keeps apart from the data that they open."""
    keys = (layout.eval_key, layout.canary_key, layout.pseudonym_keys, layout.api_keys)
    return [path for path in keys if path.exists()]


def _files(layout: Layout) -> Iterator[Path]:
    # The journal is listed once, and first: a segment with a successor in the list is complete on disk; one without may
    # be torn, as after a crash.
    journal = sorted(layout.journal.rglob("*")) if layout.journal.exists() else []
    rest = (
        Path(folder) / name
        for folder, _, names in sorted(os.walk(layout.root))
        if not Path(folder).is_relative_to(layout.journal)
        for name in sorted(names)
    )
    for file in (*journal, *rest):
        hidden = any(part.startswith(".") for part in file.relative_to(layout.root).parts)
        if file.is_file() and not hidden and not file.name.endswith(_NOT_COPIED):
            yield file


def _copy_database(source: Path, target: Path) -> None:
    """Copy with SQLite's backup API: consistent while MLflow writes (sqlite.org/backup.html)."""
    reader, writer = sqlite3.connect(source), sqlite3.connect(target)
    try:
        reader.backup(writer)
    finally:
        reader.close()
        writer.close()
