"""The main job: turn the wheel, forever or for some turns.

    ray job submit --working-dir . -- python jobs/continual.py --run jobs/recipes/laptop.toml

Gather interactions from live traffic, draw a snapshot, make an update, examine it, decide, release. Killed at
any moment it goes on where it was when it is started again; SIGTERM stops it cleanly. Serving must be up.
"""

from typing import Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.pipeline.training_loop import continual


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    turns: Annotated[int, typer.Option(help="Stop after so many turns; 0 goes on for ever.", min=0)] = 0,
) -> None:
    """Turn the wheel: gather, draw, distill, evaluate, decide, release."""
    resolved = read_run(run, overrides, print_config)
    with plain_errors():
        continual(resolved, turns)


if __name__ == "__main__":
    command(main)
