"""The table of personal policies that `sdpo personalize --list` prints."""

from rich.console import Console
from rich.table import Table

from sdpo_ray.io.paths import Layout
from sdpo_ray.personal.store import known_owners, newest_attempt, served_policy
from sdpo_ray.promote.release import served_release


def print_policies(layout: Layout) -> None:
    """Print each owner's served policy, whether it is stale, and the last attempt with its reasons. Names no user."""
    champion = served_release(layout)
    table = Table("owner", "serves", "is", "last attempt", "from", "because", box=None)
    for owner in known_owners(layout):
        policy, last = served_policy(layout, owner), newest_attempt(layout, owner)
        fresh = policy is not None and champion is not None and policy.base_version == champion.policy_version
        table.add_row(
            owner[:12],
            policy.name if policy is not None else "the shared policy",
            "" if policy is None else "fresh" if fresh else "stale: the shared policy answers",
            f"v{last.version} over v{last.base_version}: {last.verdict}" if last is not None else "in training",
            f"{len(last.snapshot.interaction_ids)} interactions" if last is not None else "",
            "; ".join(last.reasons) if last is not None else "",
        )
    Console().print(table if table.row_count else "no personal policies yet")
