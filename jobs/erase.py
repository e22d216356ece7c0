"""Forget a user: remove what they said from everything a run keeps, and say which policies have learned from it.

    python jobs/erase.py --user ann@example.org --dry-run
    python jobs/erase.py --user ann@example.org

It may be run beside the training loop and the replicas, and again after it was broken off. docs/operations.md says what it
cannot reach.
"""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from sdpo_ray.privacy.erasure_report import ErasureReport

User = Annotated[str | None, typer.Option(help="The name that the client sent as `user`, as it sent it.")]
Tenant = Annotated[str, typer.Option(help="Whose user it is; without API keys everybody is of the tenant default.")]
Turns = Annotated[
    list[str] | None,
    typer.Option(
        "--turn",
        help="Id of an answered turn (header x-sdpo-turn-id): it and its conversation, for those who gave no name. "
        "May be repeated.",
    ),
]


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    user: User = None,
    tenant: Tenant = "default",
    turn: Turns = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before removing.")] = False,
) -> None:
    """Remove what a user said from log, tables, snapshots, figures and MLflow; list the policies that learned from it.

    The result is JSON on standard output; it names nobody. Weights are not unlearned: the result says which release
    has not learned from the user. Somebody unknown is no error: then nothing is removed.
    """
    resolved = read_run(run, overrides, print_config)
    with plain_errors():
        import msgspec
        from rich.console import Console

        from sdpo_ray.privacy.data_subject import find_data_subject
        from sdpo_ray.privacy.erasure import Erasure

        named = find_data_subject(resolved.layout, tenant=tenant, user=user, turn_ids=turn or ())
        console = Console(stderr=True)
        if not dry_run and not yes:
            _ask(resolved.directory.name)
        with console.status("reading the tables") as status, Erasure(resolved, named, status.update) as forgetting:
            erased = forgetting.preview() if dry_run else forgetting.execute()
        _print(erased, console)
    typer.echo(msgspec.json.encode(erased).decode())


def _ask(name: str) -> None:
    if not sys.stdin.isatty():
        raise ConfigError("nobody is here to be asked: add --yes, or look first with --dry-run")
    typer.confirm(f"Remove what they said from the run {name}? This cannot be undone", abort=True, err=True)


def _print(erased: "ErasureReport", console: "Console") -> None:
    from rich.table import Table

    table = Table("", "would be removed" if erased.dry_run else "removed", box=None)
    for name, n in erased.rows.items():
        table.add_row(f"rows of {name}", str(n))
    for directory, n in erased.snapshots.items():
        table.add_row(f"interactions of {directory}", str(n))
    for words, n in (
        ("records of candidates, written again", len(erased.records)),
        ("MLflow runs, drawn again or deleted", erased.mlflow_runs),
        ("personal policies, and their adapters", len(erased.personal)),
        ("leftovers and pages", len(erased.leftovers)),
    ):
        if n:
            table.add_row(words, str(n))
    console.print(table)
    derived = (erased.snapshots, erased.records, erased.mlflow_runs, erased.personal, erased.learned)
    if not any((*erased.rows.values(), *derived)):
        console.print("Nothing of theirs was found. Is the name spelt as the client sent it, and the tenant right?")
    if erased.ambiguous_turns:
        console.print(f"{erased.ambiguous_turns} turns may be theirs, or of others in the same words: they stay.")
    if erased.events_in_log is None:
        console.print(
            "Kafka keeps what it was sent until the topic's retention ends; it never enters the tables again."
        )
    elif erased.events_in_log:
        console.print(f"{erased.events_in_log} of their events are in the event log.")
    _print_learned(erased, console)


def _print_learned(erased: "ErasureReport", console: "Console") -> None:
    from rich.table import Table

    if not erased.learned:
        return
    table = Table("policy", "learned from", "of them", "is", box=None, title="learned from them", title_justify="left")
    for each in erased.learned:
        standing = "served" if each.served else "a release that a rollback brings back" if each.released else "kept"
        how = each.snapshot_id if each.num_interactions else f"its parent v{each.parent_version}"
        table.add_row(f"v{each.policy_version}", how, str(each.num_interactions or ""), standing)
    console.print(table)
    without = erased.newest_release_without
    if any(each.served for each in erased.learned) and without is not None:
        console.print(
            f"Weights are not unlearned. v{without} has not learned from them: python jobs/rollback.py --to {without} "
            "serves it, and the training loop goes on from there."
        )


if __name__ == "__main__":
    command(main)
