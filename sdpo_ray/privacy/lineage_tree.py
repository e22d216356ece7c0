"""The trees that `jobs.lineage` prints."""

from collections.abc import Sequence

from rich.tree import Tree

from sdpo_ray.privacy.lineage import Ancestor, Lineage

_MAX_USERS = 5
"""Users of a policy in the tree; JSON has all of them."""


def lineage_tree(found: Lineage) -> Tree:
    """What a user or a turn left in the tables, and the snapshots and policies that drew from it."""
    tree = Tree(
        f"{found.num_turns} turns, {found.num_feedback} feedback, {found.num_interactions} interactions in the tables"
    )
    for update in found.snapshots:
        branch = tree.add(f"cycle {update.cycle}: {update.snapshot_id} held {update.num_interactions}")
        branch.add(f"v{update.policy_version}" if update.trained else "no policy came of it")
    if found.learned:
        policies = tree.add("policies that learned from them, or descend from one that did")
        for each in found.learned:
            state = ", served" if each.served else ", released" if each.released else ""
            policies.add(
                f"v{each.policy_version} of v{each.parent_version}: {each.verdict or 'not decided yet'}{state}"
            )
    for own in found.personal:
        name = f"personal policy {own.owner[:12]} v{own.version}"
        tree.add(f"{name}: {own.snapshot_id} held {own.num_interactions}{', served' if own.served else ''}")
    return tree


def ancestor_tree(line: Sequence[Ancestor]) -> Tree:
    """A release with its snapshot and users, then its parent under it, down to the base."""
    top = node = Tree(_summary(line[0]))
    for number, each in enumerate(line):
        node = node.add(_summary(each)) if number else top
        if each.num_erased:
            node.add(f"{each.num_erased} of them were erased since")
        for share in each.users[:_MAX_USERS]:
            node.add(f"{share.num_interactions} of {share.tenant}/{share.user or '(anonymous)'}")
        if len(each.users) > _MAX_USERS:
            node.add(f"and {len(each.users) - _MAX_USERS} more users")
    return top


def _summary(each: Ancestor) -> str:
    if not each.snapshot_id:
        return f"v{each.policy_version}: the base policy"
    drawn = f"{each.num_interactions} interactions of {len(each.users)} users"
    return f"v{each.policy_version}: cycle {each.cycle} learned from {each.snapshot_id}, {drawn}"
