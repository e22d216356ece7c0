"""The main job: run the training loop, forever or for a number of cycles.

    ray job submit --working-dir . -- python jobs/continual.py --run jobs/recipes/laptop.toml

Curate interactions from live traffic, draw a snapshot, make an update, evaluate it, decide, release. Killed at
any moment it goes on where it was when it is started again; SIGTERM stops it cleanly. Serving must be up.
"""

from typing import Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.pipeline.training_loop import run_training_loop


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    cycles: Annotated[int, typer.Option(help="Stop after so many cycles; 0 runs without end.", min=0)] = 0,
) -> None:
    """Run the training loop: curate, draw, distill, evaluate, decide, release."""
    resolved = read_run(run, overrides, print_config)
    with plain_errors():
        run_training_loop(resolved, cycles)


if __name__ == "__main__":
    command(main)
