"""Copy a run to another directory while it serves and learns."""

from pathlib import Path
from typing import Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.errors import ConfigError
from sdpo_ray.io.backup import back_up


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    to: Annotated[Path | None, typer.Option(help="Directory of the backup: a new one, or an empty one.")] = None,
    keys_to: Annotated[
        Path | None,
        typer.Option(help="Directory for the secrets, best on another disk. Default: they are left out."),
    ] = None,
) -> None:
    """Copy a run to another directory while it serves and learns.

    \b
    sdpo backup --run my.toml --to /backups/2026-11-21 --keys-to /vault/2026-11-21

    The copy holds what is under the run's root: journal, tables, snapshots, candidates, releases, MLflow's database.
    A run resumes from it once it is copied back to the same root. Curation, cycles and erasures wait for the copy;
    replicas go on writing their journals. Tables on S3 and an event log on Kafka need backups of their own.
    """
    resolved = read_run(run, overrides, print_config)
    with plain_errors():
        if to is None:
            raise ConfigError("give --to DIRECTORY")
        from rich.console import Console
        from rich.progress import Progress

        from sdpo_ray.io.locks import data_lock

        layout = resolved.layout
        if not layout.root.exists():
            raise ConfigError(f"there is nothing at {layout.root} to back up")
        console = Console(stderr=True)
        waiting = "waiting for the decision of the cycle that is running"
        with data_lock(layout, lambda: console.print(waiting)), Progress(console=console) as progress:
            bar = progress.add_task("copying")
            n = back_up(layout, to, keys_to, lambda done, all_: progress.update(bar, completed=done, total=all_))
    typer.echo(f"{n} files of {layout.root} are in {to}" + ("" if keys_to is None else f", secrets in {keys_to}"))
    if resolved.tables or resolved.capture.kafka.brokers:
        typer.echo("not in the backup: tables on S3, the event log on Kafka", err=True)


if __name__ == "__main__":
    command(main)
