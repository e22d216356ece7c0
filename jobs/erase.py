"""Erase a user from a run, and list the policies that learned from them."""

import sys
from typing import Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.errors import ConfigError

User = Annotated[str | None, typer.Option(help="Name of the user, exactly as the client sent it in `user`.")]
Tenant = Annotated[str, typer.Option(help="Tenant of the user; a run without API keys has only the tenant default.")]
Turns = Annotated[
    list[str] | None,
    typer.Option(
        "--turn",
        help="Id of an answered turn (header x-sdpo-turn-id): the turn and its conversation, for requests without a "
        "user. May be repeated.",
    ),
]


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    user: User = None,
    tenant: Tenant = "default",
    turn: Turns = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed; change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before removing.")] = False,
) -> None:
    """Erase a user from everything that a run keeps, and list the policies that learned from them.

    \b
    sdpo erase --user ann@example.org --dry-run
    sdpo erase --user ann@example.org

    Removes the user's turns from event log, tables, snapshots, figures and MLflow. Shows a table; standard output has
    the result as JSON, without names. Weights are not unlearned: the result names the newest release that has not
    learned from the user. An unknown user is no error, and nothing is removed then.

    May run beside the training loop and the replicas, and again after an interruption. docs/operations.md says what
    the command cannot reach.
    """
    resolved = read_run(run, overrides, print_config)
    with plain_errors():
        import msgspec
        from rich.console import Console

        from sdpo_ray.privacy.data_subject import find_data_subject
        from sdpo_ray.privacy.erasure import Erasure
        from sdpo_ray.privacy.erasure_table import print_erasure

        subject = find_data_subject(resolved.layout, tenant=tenant, user=user, turn_ids=turn or ())
        console = Console(stderr=True)
        if not dry_run and not yes:
            _confirm(resolved.directory.name)
        with console.status("reading the tables") as status, Erasure(resolved, subject, status.update) as erasure:
            erased = erasure.preview() if dry_run else erasure.execute()
        print_erasure(erased, console)
    typer.echo(msgspec.json.encode(erased).decode())


def _confirm(name: str) -> None:
    if not sys.stdin.isatty():
        raise ConfigError("there is no terminal to confirm in: add --yes, or look first with --dry-run")
    typer.confirm(f"Remove the user's turns from the run {name}? This cannot be undone", abort=True, err=True)


if __name__ == "__main__":
    command(main)
