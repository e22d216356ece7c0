"""`make demo`: the whole loop on this machine, with every real part, watched on one screen.

Starts Ray, the Serve application and simulated users; submits `jobs/continual.py` as a user would; goes on until
three updates are promoted and one reckless one is refused; writes summary.json and figure.png; stops everything
it started. Exits with 1 when what it must show does not hold.
"""

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, command, plain_errors
from sdpo_ray.cluster.local_cluster import require_port
from sdpo_ray.demo.demo import MIN_FREE_BYTES, REPOSITORY, Demo
from sdpo_ray.errors import ConfigError


def main(
    run: Annotated[Path, typer.Option(help="TOML run file.")] = LAPTOP,
    root: Annotated[Path, typer.Option(help="Where everything is written; emptied first.")] = REPOSITORY
    / "runs"
    / "demo",
    seed: Annotated[int, typer.Option(help="Seed of users, draws and updates.")] = 0,
    port: Annotated[int, typer.Option(help="Port of the API.")] = 8000,
    keep: Annotated[bool, typer.Option(help="Leave everything up afterwards, until Ctrl-C.")] = False,
) -> None:
    """Show the whole loop: three promotions, one refusal, no failed request."""
    overrides = [f"root={root.resolve()}", f"seed={seed}", f"serve.port={port}"]
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with plain_errors():
        require_port(port, "the API")
        root.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(root.parent).free) < MIN_FREE_BYTES:
            raise ConfigError(f"{root.parent} has {free >> 20} MiB free; the demo needs {MIN_FREE_BYTES >> 20} MiB")
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        broken = Demo(run.resolve(), overrides).go(keep=keep)
    typer.echo(f"{root}/summary.json and {root}/figure.png hold the result")
    for failure in broken:
        typer.secho(f"does not hold: {failure}", err=True, fg="red")
    raise typer.Exit(1 if broken else 0)


if __name__ == "__main__":
    command(main)
