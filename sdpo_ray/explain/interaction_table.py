"""The table of the newest interactions, which `jobs.explain` prints when no turn is named."""

from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdpo_ray.explain.interaction_lookup import newest_interactions
from sdpo_ray.io.paths import Layout

_NUM_ROWS = 20


def print_newest(layout: Layout) -> None:
    """Print ids, versions, times and texts of the newest interactions. Raises ConfigError if there are none."""
    table = Table("turn", "answered by", "follow-up at", "user", "next", title="explain one with --turn", box=None)
    for each in newest_interactions(layout, _NUM_ROWS):
        table.add_row(
            Text(each.interaction_id, no_wrap=True, overflow="fold"),
            f"v{each.turn.policy_version}" if not each.turn.text_only else "an imported log",
            f"{datetime.fromtimestamp(each.follow_up_at_s):%Y-%m-%d %H:%M:%S}",
            Text(each.turn.messages[-1].content, no_wrap=True, overflow="ellipsis"),
            Text(each.follow_up, no_wrap=True, overflow="ellipsis"),
        )
    Console().print(table)
