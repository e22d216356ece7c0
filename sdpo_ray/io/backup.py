"""Copy a run to another place while it serves and learns; the copy is one that a run can go on from.

    python jobs/backup.py --to /backups/2026-11-21 --keys-to /vault/2026-11-21

Curation, cycles and erasures wait meanwhile; replicas go on writing their journals. A copy is put back by copying it
to the same root. What is not under the root, a table on S3 or an event log on Kafka, has backups of its own.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from jobs.commandline import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.errors import ConfigError
from sdpo_ray.storage import Layout, sealed_directory

MLFLOW = "mlflow.db"
_SQLITE = ("-wal", "-shm", "-journal")


def back_up(layout: Layout, to: Path, keys_to: Path | None, on_file: Callable[[int, int], None]) -> int:
    """Copy the run; returns the number of files. `on_file(done, total)` is called after each.

    Hold `curate.turnstile.undisturbed`. Raises ConfigError where `to` holds anything already.
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
    named = (layout.exam_key, layout.trial_key, layout.pseudonym_keys, layout.api_keys)
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


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    to: Annotated[Path | None, typer.Option(help="Directory of the backup: a new one, or an empty one.")] = None,
    keys_to: Annotated[
        Path | None,
        typer.Option(help="Directory for the secrets, best on another disk; without it they are left out."),
    ] = None,
) -> None:
    """Back up everything under the run's root: journal, tables, snapshots, candidates, releases, MLflow's books."""
    resolved = read_run(run, overrides, print_config)
    with plain_errors():
        if to is None:
            raise ConfigError("where to? --to DIRECTORY")
        from rich.console import Console
        from rich.progress import Progress

        from sdpo_ray.curate.turnstile import undisturbed

        layout = Layout(resolved.directory, resolved.tables)
        if not layout.root.exists():
            raise ConfigError(f"there is nothing at {layout.root} to back up")
        console = Console(stderr=True)
        waits = "waiting for the cycle under way to come to its decision"
        with undisturbed(layout, lambda: console.print(waits)), Progress(console=console) as progress:
            bar = progress.add_task("copying")
            n = back_up(layout, to, keys_to, lambda done, all_: progress.update(bar, completed=done, total=all_))
    typer.echo(f"{n} files of {layout.root} are in {to}" + ("" if keys_to is None else f", secrets in {keys_to}"))
    if resolved.tables or resolved.capture.kafka.brokers:
        typer.echo("not in it, since they are elsewhere: tables on S3, the event log on Kafka", err=True)


if __name__ == "__main__":
    command(main)
