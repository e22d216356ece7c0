"""Write the rows that a query selects into one file, with a progress bar on standard error."""

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from sdpo_ray.datasets.export_query import ExportQuery, ExportSelection, from_feedback, from_snapshot, from_table
from sdpo_ray.datasets.export_rows import ExportKind
from sdpo_ray.datasets.row_writer import open_row_writer
from sdpo_ray.errors import ConfigError
from sdpo_ray.io.files import require_ready
from sdpo_ray.io.paths import Layout


def export(
    layout: Layout, snapshot: Path | None, query: ExportQuery, what: ExportKind, out: Path, limit: int | None
) -> tuple[int, Counter[str]]:
    """Number of rows written, and of rows left out by reason.

    Raises ConfigError if `out` exists, if the table does not, or if no row is selected.
    """
    if snapshot is not None:
        selected = from_snapshot(require_ready(snapshot), query)
    elif what is ExportKind.INTERACTIONS:
        selected = from_table(layout, query)
    else:
        selected = from_feedback(layout, query, what)
    return _write(selected, out, what, limit), selected.left_out


def _write(selected: ExportSelection, out: Path, what: ExportKind, limit: int | None) -> int:
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
            raise ConfigError(f"nothing to export: no {what.value} match the query")
    return num_rows
