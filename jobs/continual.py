"""The main job, `ray job submit --working-dir . -- python jobs/continual.py --run my.toml`: run the training loop."""

from typing import Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.pipeline.training_loop import run_training_loop


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    cycles: Annotated[int, typer.Option(help="Stop after so many cycles; 0 runs until stopped.", min=0)] = 0,
) -> None:
    """Run the training loop: collect interactions, train, evaluate, decide, release.

    \b
    sdpo deploy --run my.toml
    sdpo continual --run my.toml

    Each cycle waits for enough new interactions, draws a snapshot, trains a candidate, evaluates it on the second
    engine, and promotes, holds or rejects it. Serving must be up. SIGTERM ends the job at once; stopped or killed
    at any moment, it resumes where it was when it is started again. `sdpo review` lists the candidates and verdicts.
    """
    resolved = read_run(run, overrides, print_config)
    with plain_errors():
        run_training_loop(resolved, cycles)


if __name__ == "__main__":
    command(main)
