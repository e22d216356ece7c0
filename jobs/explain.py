"""Draw the advantage of each token of an answer, as in the paper's Figures 2, 7 and 8."""

from pathlib import Path
from typing import Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.errors import ConfigError
from sdpo_ray.explain.pages import PAGES, page_of


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    turn: Annotated[
        str | None, typer.Option(help="Id of an answered turn: the header x-sdpo-turn-id of its answer.")
    ] = None,
    case: Annotated[
        Path | None,
        typer.Option(help="JSON file of cases instead of a turn; sdpo_ray/explain/cases.py has the forms."),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Policy directory. Default: the one that answered, else the champion.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help=f"Directory to write. Default: one under {PAGES}.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the answers that a case file leaves out.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest of these answers, in tokens.")] = 256,
) -> None:
    """Draw how an interaction changes the probability of each token of its answer.

    \b
    sdpo explain                              # the newest interactions and their ids
    sdpo explain --turn 0b8c41d2
    sdpo explain --case cases.json --policy runs/first

    Writes index.html, with numbers on hover, and cells.png; prints where they are, and the strongest tokens. Training
    makes blue tokens likelier and red ones less likely. No cluster is needed.
    """
    resolved = read_run(run, overrides, print_config)
    with plain_errors():
        if turn is not None and case is not None:
            raise ConfigError("give --turn or --case, not both")
        from sdpo_ray.explain.explanation import explain_cases, explain_turn
        from sdpo_ray.explain.interaction_table import print_newest

        if turn is not None:
            explain_turn(resolved, turn, policy, out or page_of(turn))
        elif case is not None:
            explain_cases(resolved, case, policy, out or PAGES / case.stem, seed=seed, max_tokens=max_tokens)
        else:
            print_newest(resolved.layout)


if __name__ == "__main__":
    command(main)
