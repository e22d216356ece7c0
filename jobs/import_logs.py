"""Read the logs of elsewhere: into a snapshot that `jobs/distill.py` learns from, or into a run's own event log."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdpo_ray.cli.options import Overrides, command, plain_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress

    from sdpo_ray.config import Run
    from sdpo_ray.datasets.conversation_split import SplitLimits
    from sdpo_ray.datasets.formats import Format
    from sdpo_ray.datasets.import_report import ImportReport

Files = Annotated[list[Path], typer.Argument(help="JSON Lines, JSON array or Parquet, gzipped or not.")]
Out = Annotated[Path | None, typer.Option(help="Make a snapshot: directory to write; must not exist.")]
Into = Annotated[
    Path | None,
    typer.Option(help="Or write into the event log of this run file's run, where they are curated as live turns are."),
]
FormatName = Annotated[
    str | None,
    typer.Option("--format", help="wildchat, wildfeedback, openai or triples; default: by each file's first record."),
]
Language = Annotated[str, typer.Option(help="ISO 639-1 code of the only language to keep, or 'any'.")]
QuestionChars = Annotated[
    int | None, typer.Option(min=1, help="Longest user's message; default: 4096 for wildchat, else no limit.")
]


def main(
    files: Files,
    out: Out = None,
    into: Into = None,
    overrides: Overrides = None,
    form: FormatName = None,
    limit: Annotated[int, typer.Option(min=1, help="Interactions to keep, drawn by the seed.")] = 50_000,
    seed: Annotated[int, typer.Option(help="Of the draw and of the order of training.")] = 0,
    held_out: Annotated[float, typer.Option(min=0, max=0.99, help="Share of conversations never trained on.")] = 0.1,
    language: Language = "en",
    drop_toxic: Annotated[bool, typer.Option("--drop-toxic", help="Refuse what the log calls toxic.")] = False,
    min_messages: Annotated[int, typer.Option(min=3, help="Fewest messages of a conversation.")] = 3,
    max_messages: Annotated[int, typer.Option(min=1, help="Most messages of a prompt.")] = 5,
    max_conversation_chars: Annotated[int, typer.Option(min=1, help="Longest conversation.")] = 100_000,
    max_answer_chars: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 4096,
    max_question_chars: QuestionChars = None,
) -> None:
    """Read logs of chats to learn from. The defaults are the paper's filters."""
    from sdpo_ray.config import load_run
    from sdpo_ray.curate.language import LANGUAGES
    from sdpo_ray.datasets.conversation_split import SplitLimits
    from sdpo_ray.datasets.formats import Format
    from sdpo_ray.errors import ConfigError

    with plain_errors():
        if (out is None) == (into is None):
            raise ConfigError("name either a snapshot to make (--out DIR) or the run to write into (--into RUN.toml)")
        if overrides and into is None:
            raise ConfigError("--set changes a run file, which --into names")
        if form is not None and form not in list(Format):
            raise ConfigError(f"no format {form!r}; there are {', '.join(Format)}")
        if language != "any" and language not in LANGUAGES:
            raise ConfigError(f"cannot tell {language!r} from others; there are {', '.join(LANGUAGES)}, any")
        if out is not None and out.exists():
            raise ConfigError(f"{out} exists: name a new directory")
        if missing := [str(path) for path in files if not path.is_file()]:
            raise ConfigError(f"no file {', '.join(missing)}")
        limits = SplitLimits(
            min_messages=min_messages,
            max_messages=max_messages,
            max_conversation_chars=max_conversation_chars,
            max_answer_chars=max_answer_chars,
            max_question_chars=max_question_chars,
            language=None if language == "any" else language,
            drop_toxic=drop_toxic,
        )
        kind = Format(form) if form else None
        if into is not None:
            _record(files, kind, limits, load_run(into, overrides or ()))
        elif out is not None:
            _make(files, kind, limits, out, limit=limit, seed=seed, held_out=held_out)


def _make(
    files: list[Path],
    form: "Format | None",
    limits: "SplitLimits",
    out: Path,
    *,
    limit: int,
    seed: int,
    held_out: float,
) -> None:
    from sdpo_ray.datasets.import_snapshot import SnapshotImport

    logs = SnapshotImport(limits=limits, limit=limit, seed=seed, held_out=held_out)
    with _bars() as progress:
        for path in files:
            logs.add(path, form, _bar(progress, path))
    _print(logs.report())
    snapshot = logs.write(out)
    typer.echo(f"{out}: {len(snapshot.interaction_ids)} interactions to learn from, {snapshot.snapshot_id}")


def _record(files: list[Path], form: "Format | None", limits: "SplitLimits", run: "Run") -> None:
    from sdpo_ray.datasets.log_ingest import record
    from sdpo_ray.datasets.log_reader import LogReader

    reader, n, numbers = LogReader(limits), 0, 0
    with _bars() as progress:
        for path in files:
            recorded, refused = record(reader.read(path, form, _bar(progress, path)), run)
            n, numbers = n + recorded, numbers + refused
    for reason, count in sorted(reader.refused.items()):
        typer.echo(f"refused: {reason}: {count}")
    if numbers:
        typer.echo(f"refused: too_many_digits: {numbers}")
    typer.echo(f"{n} interactions of {reader.num_records} records are in the event log of {run.directory}")
    typer.echo("the training loop takes them from there, or now: python jobs/curate.py")


def _bars() -> "Progress":
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), transient=True)


def _bar(progress: "Progress", path: Path) -> "Callable[[int], None]":
    from rich.markup import escape

    task = progress.add_task(escape(path.name), total=path.stat().st_size)
    return lambda done: progress.update(task, completed=done)


def _print(report: "ImportReport") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "count", "share", box=None)
    for source in report.sources:
        malformed = f", the first malformed one is {source.first_malformed}" if source.first_malformed else ""
        table.add_row(f"{escape(source.name)}: {source.format}{malformed}", str(source.num_records), "")
    for name, n in (("train", report.num_train), ("held out", report.num_held_out)):
        table.add_row(name, str(n), f"{n / max(report.num_answers, 1):.1%} of answers", style="green")
    for each in report.refused:
        table.add_row(f"refused: {each.reason}", str(each.n), f"{each.share:.1%} of {each.of}")
    Console().print(table)


if __name__ == "__main__":
    command(main)
