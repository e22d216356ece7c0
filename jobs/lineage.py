"""Show which policies come from a user, a turn or a release."""

from typing import Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.errors import ConfigError


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    user: Annotated[str | None, typer.Option(help="Name of the user, as the client sent it in `user`.")] = None,
    tenant: Annotated[str, typer.Option(help="Tenant of the user.")] = "default",
    release: Annotated[str | None, typer.Option(help="Policy version, such as v7: its ancestors.")] = None,
    turn: Annotated[str | None, typer.Option(help="Id of an answered turn: the header x-sdpo-turn-id.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a tree.")] = False,
) -> None:
    """Show what was learned from a user or a turn, or what a release was learned from.

    \b
    sdpo lineage --user ann@example.org    # snapshots and policies that drew the user's interactions
    sdpo lineage --release v7              # snapshots and users behind v7, back to the base

    Prints a tree; users appear by pseudonym. Erased interactions are still followed, by the ids that snapshots keep.
    A policy counts as having learned from every interaction of its snapshot.
    """
    resolved = read_run(run, overrides, print_config)
    with plain_errors():
        if sum(each is not None for each in (user, release, turn)) != 1:
            raise ConfigError("give one of --user, --release and --turn")
        from sdpo_ray.privacy.lineage import ancestors_of, lineage_of

        layout = resolved.layout
        found = ancestors_of(layout, release) if release is not None else lineage_of(layout, tenant, user, turn)
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode(found).decode())
    else:
        from rich.console import Console

        from sdpo_ray.privacy.lineage_tree import ancestor_tree, lineage_tree

        Console().print(ancestor_tree(found) if isinstance(found, list) else lineage_tree(found))


if __name__ == "__main__":
    command(main)
