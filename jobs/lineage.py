"""Where a policy comes from, and what became of what somebody said: by user, by release, by turn."""

from typing import TYPE_CHECKING, Annotated

import typer

from sdpo_ray.cli.options import LAPTOP, Overrides, PrintConfig, RunFile, command, plain_errors, read_run
from sdpo_ray.config import Run
from sdpo_ray.errors import ConfigError

if TYPE_CHECKING:
    from rich.tree import Tree

    from sdpo_ray.privacy.lineage import Ancestor, Lineage

_SHOWN = 5
"""Users of a policy that the tree names; JSON has them all."""


def main(
    run: RunFile = LAPTOP,
    overrides: Overrides = None,
    print_config: PrintConfig = False,
    user: Annotated[str | None, typer.Option(help="The name that the client sent as `user`.")] = None,
    tenant: Annotated[str, typer.Option(help="Whose user it is.")] = "default",
    release: Annotated[str | None, typer.Option(help="A policy version, such as v7, back to the base.")] = None,
    turn: Annotated[str | None, typer.Option(help="Id of an answered turn: the header x-sdpo-turn-id.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a tree.")] = False,
) -> None:
    """Show which snapshots and policies come from a user or a turn, or what a release comes from.

    Give one of --user, --release and --turn. Users are shown by pseudonym. What was erased is still followed, by the
    ids that snapshots keep. A policy is said to have learned from what its snapshot held.
    """
    resolved = read_run(run, overrides, print_config)
    with plain_errors():
        if sum(asked is not None for asked in (user, release, turn)) != 1:
            raise ConfigError("give one of --user, --release and --turn")
        found = _line(resolved, release) if release is not None else _trace(resolved, tenant, user, turn)
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode(found).decode())
    else:
        from rich.console import Console

        Console().print(_line_tree(found) if isinstance(found, list) else _trace_tree(found))


def _trace(run: Run, tenant: str, user: str | None, turn: str | None) -> "Lineage":
    from sdpo_ray.personal.store import snapshot_uses
    from sdpo_ray.privacy.data_subject import find_data_subject
    from sdpo_ray.privacy.lineage import trace_lineage
    from sdpo_ray.privacy.run_history import read_run_history
    from sdpo_ray.privacy.user_footprint import UserTables, footprint_of

    layout = run.layout
    named = find_data_subject(layout, tenant=tenant, user=user, turn_ids=() if turn is None else (turn,))
    # A turn alone, without its conversation.
    footprint = footprint_of(UserTables.of(layout), named.users, also=named.turn_ids)
    ids = named.interaction_ids(layout, footprint) if turn is None else footprint.source_ids | footprint.interaction_ids
    return trace_lineage(read_run_history(layout), footprint, ids, snapshot_uses(layout, ids))


def _line(run: Run, release: str) -> "list[Ancestor]":
    from sdpo_ray.privacy.lineage import ancestors
    from sdpo_ray.privacy.run_history import read_run_history
    from sdpo_ray.privacy.snapshot_erasure import users_of

    number = release.removeprefix("v")
    if not number.isdecimal():
        raise ConfigError(f"--release {release}: a policy version is a number, such as v7")
    return ancestors(read_run_history(run.layout), int(number), users_of)


def _trace_tree(found: "Lineage") -> "Tree":
    from rich.tree import Tree

    tree = Tree(
        f"{found.num_turns} turns, {found.num_feedback} feedback, {found.num_interactions} interactions in the tables"
    )
    for update in found.snapshots:
        branch = tree.add(f"cycle {update.cycle}: {update.snapshot_id} held {update.num_interactions}")
        branch.add(f"v{update.policy_version}" if update.trained else "no policy came of it")
    if found.learned:
        policies = tree.add("policies that learned from them, or descend from one that did")
        for each in found.learned:
            standing = ", served" if each.served else ", released" if each.released else ""
            policies.add(f"v{each.policy_version} of v{each.parent_version}: {each.verdict or 'under way'}{standing}")
    for own in found.personal:
        name = f"personal policy {own.owner[:12]} v{own.version}"
        tree.add(f"{name}: {own.snapshot_id} held {own.num_interactions}{', served' if own.served else ''}")
    return tree


def _line_tree(line: "list[Ancestor]") -> "Tree":
    from rich.tree import Tree

    top = node = Tree(_words(line[0]))
    for number, each in enumerate(line):
        node = node.add(_words(each)) if number else top
        if each.num_erased:
            node.add(f"{each.num_erased} of them were erased since")
        for share in each.users[:_SHOWN]:
            node.add(f"{share.num_interactions} of {share.tenant}/{share.user or '(anonymous)'}")
        if len(each.users) > _SHOWN:
            node.add(f"and {len(each.users) - _SHOWN} more users")
    return top


def _words(each: "Ancestor") -> str:
    if not each.snapshot_id:
        return f"v{each.policy_version}: what everything starts from"
    drawn = f"{each.num_interactions} interactions of {len(each.users)} users"
    return f"v{each.policy_version}: cycle {each.cycle} learned from {each.snapshot_id}, {drawn}"


if __name__ == "__main__":
    command(main)
