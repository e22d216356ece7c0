"""Write what a run has learned from, or could, for other trainers: Parquet or JSON Lines.

    python jobs/export.py --run jobs/recipes/laptop.toml --out interactions.jsonl.gz
    python jobs/export.py --run jobs/recipes/laptop.toml --what preferences --out dpo.parquet

`datasets.load_dataset("json" or "parquet", data_files=...)` and TRL's trainers read the files as they are.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.errors import ConfigError
from sdpo_ray.io.files import require_ready

if TYPE_CHECKING:
    from sdpo_ray.datasets.export_query import ExportSelection
    from sdpo_ray.datasets.export_rows import ExportKind


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    out: Annotated[
        Path | None, typer.Option(help="File to write: .parquet, .jsonl or .jsonl.gz; must not exist.")
    ] = None,
    what: Annotated[str, typer.Option(help="interactions, preferences or labels.")] = "interactions",
    snapshot: Annotated[
        Path | None, typer.Option(help="Directory of a snapshot: the interactions of one update, in its order.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="ISO 8601 time of the first follow-up or feedback; UTC unless it says.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="The same of the first one that is left out.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Of this tenant alone.")] = None,
    policy_version: Annotated[int | None, typer.Option(help="Answers of this version alone.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows, at most; the oldest come first.")] = None,
) -> None:
    """Write interactions, preferences or labels for other trainers, in OpenAI's messages.

    Interactions are prompt, completion, user_response. TRL's SFTTrainer takes them, and jobs/import_logs.py reads them
    back, from either kind of file: --format triples --language any --max-messages 1000 leaves nothing out.

    Preferences, of answers that users edited, are prompt, chosen, rejected for DPOTrainer; labels, of answers with a
    thumb, are prompt, completion, label for KTOTrainer. Users are pseudonyms, and what was redacted stays so.
    """
    resolved = read_run(run, overrides, print_config)
    with plain_errors():
        if out is None:
            raise ConfigError("give --out FILE")
        from sdpo_ray.datasets.export_query import ExportQuery, from_feedback, from_snapshot, from_table
        from sdpo_ray.datasets.export_rows import ExportKind

        if what not in list(ExportKind):
            raise ConfigError(f"there is no {what!r} to export; there are {', '.join(ExportKind)}")
        if snapshot is not None and what != ExportKind.INTERACTIONS:
            raise ConfigError("a snapshot has interactions alone: leave --what, or --snapshot, out")
        selection = ExportQuery(since_s=_seconds(since), until_s=_seconds(until), tenant=tenant, version=policy_version)
        layout = resolved.layout
        if snapshot is not None:
            selected = from_snapshot(require_ready(snapshot), selection)
        elif what == ExportKind.INTERACTIONS:
            selected = from_table(layout, selection)
        else:
            selected = from_feedback(layout, selection, ExportKind(what))
        num_rows = _write(selected, out, ExportKind(what), limit)
        for reason, n in sorted(selected.left_out.items()):
            typer.echo(f"left out: {reason}: {n}", err=True)
    typer.echo(f"{out}: {num_rows} {what}")


def _write(selected: "ExportSelection", out: Path, what: "ExportKind", limit: int | None) -> int:
    """How many rows were written. Raises ConfigError where the file exists, or would have none."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from sdpo_ray.datasets.row_writer import open_row_writer

    total = selected.num_rows if limit is None else min(limit, selected.num_rows)
    num_rows = 0
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        open_row_writer(out, what) as write,
        Progress(*columns, console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task(what.value, total=total)
        for rows in selected.tables:
            rows = rows if limit is None else rows.slice(0, limit - num_rows)
            write(rows)
            num_rows += rows.num_rows
            progress.update(task, completed=num_rows)
            if num_rows == limit:
                break
        if not num_rows:
            raise ConfigError(f"nothing to export: no {what.value} are what was asked for")
    return num_rows


def _seconds(stated: str | None) -> float | None:
    """Unix time of an ISO 8601 date or time."""
    if stated is None:
        return None
    try:
        time = datetime.fromisoformat(stated)
    except ValueError:
        raise ConfigError(f"{stated!r} is no ISO 8601 date or time, such as 2026-03-01 or 2026-03-01T12:00") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


if __name__ == "__main__":
    command(main)
