"""Bring the tables of a run up to date once. The training loop does this by itself."""

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run

if TYPE_CHECKING:
    from sdpo_ray.curate.pipeline import CurationProgress, Curator


def main(run: RunFile = LAPTOP, overrides: Overrides = None, print_config: PrintConfig = False) -> None:
    """Bring the tables up to date once: event log to turns to interactions.

    \b
    sdpo curate --run my.toml

    Ingests the new events of the log, pairs answers with follow-ups, and admits or refuses each pair. Prints counts
    as JSON, with the reasons of what was refused. Needs the Ray cluster that is up.
    """
    resolved = read_run(run, overrides, print_config)
    import msgspec
    import ray

    from sdpo_ray.curate.pipeline import Curator
    from sdpo_ray.eventlog.factory import open_log
    from sdpo_ray.io.locks import data_lock

    layout = resolved.layout
    with plain_errors():
        ray.init(address="auto", ignore_reinit_error=True, log_to_driver=False)
        log = open_log(layout, resolved.capture, name="curate")
        with data_lock(layout):
            curated = advance_twice(Curator(layout, log, curate=resolved.curate, capture=resolved.capture))
    typer.echo(msgspec.json.encode(curated).decode())


def advance_twice(curator: "Curator") -> "CurationProgress":
    """Counts of two advances, since a follow-up is decided in the advance after its ingest; compact what is due."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading the event log", total=None)
        stored = 0

        def show(num_turns: int) -> None:
            nonlocal stored
            stored += num_turns
            progress.update(task, description=f"{stored} turns stored")

        first = curator.advance(show)
        progress.update(task, description=f"{first.turns_ingested} turns stored, pairing them")
        second = curator.advance(show)
        progress.update(task, description="compacting")
        curator.maintain()
    return replace(
        second,
        turns_ingested=first.turns_ingested + second.turns_ingested,
        feedback_ingested=first.feedback_ingested + second.feedback_ingested,
        interactions_admitted=first.interactions_admitted + second.interactions_admitted,
        backlog_bytes=first.backlog_bytes,
        refused=first.refused + second.refused,
    )


if __name__ == "__main__":
    command(main)
