"""Import log files into a snapshot or an event log: check the arguments, show progress, print the counts."""

from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from sdpo_ray.config import Run
from sdpo_ray.curate.language import LANGUAGES
from sdpo_ray.datasets.conversation_split import SplitLimits
from sdpo_ray.datasets.formats import Format
from sdpo_ray.datasets.import_report import ImportReport
from sdpo_ray.datasets.import_snapshot import SnapshotImport
from sdpo_ray.datasets.log_ingest import ingest_logs
from sdpo_ray.datasets.log_reader import LogReader
from sdpo_ray.errors import ConfigError


def parse_format(name: str | None) -> Format | None:
    """The format of that name; None for None. Raises ConfigError for an unknown name."""
    if name is not None and name not in list(Format):
        raise ConfigError(f"no format {name!r}; there are {', '.join(Format)}")
    return Format(name) if name else None


def parse_language(code: str) -> str | None:
    """The language code; None for `any`. Raises ConfigError for a language that cannot be detected."""
    if code != "any" and code not in LANGUAGES:
        raise ConfigError(f"cannot tell {code!r} from others; there are {', '.join(LANGUAGES)}, any")
    return None if code == "any" else code


def require_files(files: list[Path]) -> None:
    """Raise ConfigError that names the files that do not exist."""
    if missing := [str(path) for path in files if not path.is_file()]:
        raise ConfigError(f"no file {', '.join(missing)}")


def import_snapshot(
    files: list[Path], form: Format | None, limits: SplitLimits, out: Path, *, limit: int, seed: int, held_out: float
) -> None:
    """Write a snapshot, and print what became of the records. Raises ConfigError if `out` exists."""
    if out.exists():
        raise ConfigError(f"{out} exists: name a new directory")
    require_files(files)
    logs = SnapshotImport(limits=limits, limit=limit, seed=seed, held_out=held_out)
    with _progress() as progress:
        for path in files:
            logs.add(path, form, _bar(progress, path))
    _print(logs.report())
    snapshot = logs.write(out)
    typer.echo(f"{out}: {len(snapshot.interaction_ids)} interactions to learn from, {snapshot.snapshot_id}")


def import_into_log(files: list[Path], form: Format | None, limits: SplitLimits, run: Run) -> None:
    """Write turns and comments into the run's event log, and print the counts."""
    require_files(files)
    reader, num_ingested, num_with_digits = LogReader(limits), 0, 0
    with _progress() as progress:
        for path in files:
            ingested, refused = ingest_logs(reader.read(path, form, _bar(progress, path)), run)
            num_ingested, num_with_digits = num_ingested + ingested, num_with_digits + refused
    for reason, n in sorted(reader.refused.items()):
        typer.echo(f"refused: {reason}: {n}")
    if num_with_digits:
        typer.echo(f"refused: too_many_digits: {num_with_digits}")
    typer.echo(f"{num_ingested} interactions of {reader.num_records} records are in the event log of {run.directory}")
    typer.echo("the training loop reads them from there; `sdpo curate` stores them at once")


def _progress() -> Progress:
    return Progress(console=Console(stderr=True), transient=True)


def _bar(progress: Progress, path: Path) -> Callable[[int], None]:
    task = progress.add_task(escape(path.name), total=path.stat().st_size)
    return lambda done: progress.update(task, completed=done)


def _print(report: ImportReport) -> None:
    table = Table("", "count", "share", box=None)
    for source in report.sources:
        malformed = f", the first malformed one is {source.first_malformed}" if source.first_malformed else ""
        table.add_row(f"{escape(source.name)}: {source.format}{malformed}", str(source.num_records), "")
    for name, n in (("train", report.num_train), ("held out", report.num_held_out)):
        table.add_row(name, str(n), f"{n / max(report.num_answers, 1):.1%} of answers", style="green")
    for each in report.refused:
        table.add_row(f"refused: {each.reason}", str(each.n), f"{each.share:.1%} of {each.of}")
    Console().print(table)
