"""See what an interaction teaches: the advantage of each token, as the paper's Figures 2, 7 and 8."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.config import Run
from sdpo_ray.errors import ConfigError
from sdpo_ray.explain.pages import PAGES, page_of

_LISTED = 20


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    turn: Annotated[
        str | None, typer.Option(help="Id of an answered turn: the header x-sdpo-turn-id of its answer.")
    ] = None,
    case: Annotated[
        Path | None,
        typer.Option(help="JSON file of cases in place of a turn; sdpo_ray/explain/cases.py has the forms."),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="Policy directory. Default: the one that answered, else the champion.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help=f"Where to write. Default: a directory under {PAGES}.")] = None,
    seed: Annotated[int, typer.Option(help="Chance in the answers that a case file leaves to the policy.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the longest of these answers.")] = 256,
) -> None:
    """Draw what each token of an answer is moved by: index.html with numbers on hover, and PNG files.

    Blue tokens become likelier, red ones less likely. With neither --turn nor --case, list the newest interactions
    and their ids. No cluster is needed.
    """
    resolved = read_run(run, overrides, print_config)
    with plain_errors():
        if turn is not None and case is not None:
            raise ConfigError("give --turn or --case, not both")
        if turn is not None:
            _turn(resolved, turn, policy, out)
        elif case is not None:
            _cases(resolved, case, policy, out, seed, max_tokens)
        else:
            _list(resolved)


def _turn(run: Run, turn_id: str, policy: Path | None, out: Path | None) -> None:
    from sdpo_ray.explain.attribution_report import Reading
    from sdpo_ray.explain.interaction_lookup import find, policy_of

    interaction = find(run.layout, turn_id)
    path, which = (policy, "as you asked") if policy else policy_of(run, interaction.turn.policy_version)
    reading = Reading(run, path)
    typer.echo(f"policy: {path} ({which})")
    reading.read([interaction])
    reading.write(out or page_of(turn_id), f"Turn {turn_id}")


def _cases(run: Run, file: Path, policy: Path | None, out: Path | None, seed: int, max_tokens: int) -> None:
    from sdpo_ray.explain.attribution_report import Reading
    from sdpo_ray.explain.cases import read_cases
    from sdpo_ray.explain.interaction_lookup import champion

    cases = read_cases(file)
    path, which = (policy, "as you asked") if policy else champion(run)
    reading = Reading(run, path)
    typer.echo(f"policy: {path} ({which})")
    for case in cases:
        reading.read_case(case, seed=seed, max_tokens=max_tokens)
    reading.write(out or PAGES / file.stem, f"The cases of {file.name}")


def _list(run: Run) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sdpo_ray.explain.interaction_lookup import newest

    table = Table("turn", "answered by", "follow-up at", "user", "next", title="explain one with --turn", box=None)
    for each in newest(run.layout, _LISTED):
        table.add_row(
            Text(each.interaction_id, no_wrap=True, overflow="fold"),
            f"v{each.turn.policy_version}" if not each.turn.text_only else "elsewhere",
            f"{datetime.fromtimestamp(each.follow_up_at_s):%Y-%m-%d %H:%M:%S}",
            Text(each.turn.messages[-1].content, no_wrap=True, overflow="ellipsis"),
            Text(each.follow_up, no_wrap=True, overflow="ellipsis"),
        )
    Console().print(table)


if __name__ == "__main__":
    command(main)
