"""Run the whole loop on this machine with its real parts, as `make demo` does, and check what it shows."""

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, RunFile, command, plain_errors
from sdpo_ray.cluster.local_cluster import require_port
from sdpo_ray.demo.demo import MIN_FREE_BYTES, Demo
from sdpo_ray.errors import ConfigError


def main(
    run: RunFile = LAPTOP,
    root: Annotated[Path, typer.Option(help="Directory of everything that is written; emptied first.")] = Path("runs")
    / "demo",
    seed: Annotated[int, typer.Option(help="Seed of users, draws and updates.")] = 0,
    port: Annotated[int, typer.Option(help="Port of the API.")] = 8000,
    keep: Annotated[bool, typer.Option(help="Leave everything up afterwards, until Ctrl-C.")] = False,
) -> None:
    """Run the whole loop on this machine in about eight minutes and check what it shows.

    \b
    sdpo demo
    sdpo demo --keep    # then chat with the policy and open MLflow

    Starts Ray, the Serve applications and simulated users, and submits the training loop as a Ray job until three
    updates are promoted and one reckless update is rejected. Writes summary.json and figure.png into --root, and stops
    everything that it started. Exits with 1 if a check fails, such as a failed request.
    """
    overrides = [f"root={root.resolve()}", f"seed={seed}", f"serve.port={port}"]
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with plain_errors():
        require_port(port, "the API")
        root.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(root.parent).free) < MIN_FREE_BYTES:
            raise ConfigError(f"{root.parent} has {free >> 20} MiB free; the demo needs {MIN_FREE_BYTES >> 20} MiB")
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        failed = Demo(run.resolve(), overrides).go(keep=keep)
    typer.echo(f"{root}/summary.json and {root}/figure.png hold the result")
    for check in failed:
        typer.secho(f"does not hold: {check}", err=True, fg="red")
    raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    command(main)
