"""One interaction of a run by the id of its turn, and the policy that answered, as far as it is still on disk."""

from pathlib import Path
from typing import TYPE_CHECKING

from sdpo_ray.config import Run
from sdpo_ray.errors import ConfigError
from sdpo_ray.io.files import is_ready, read_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.promote.release import served_release
from sdpo_ray.records import BASE_VERSION, Interaction, Release

if TYPE_CHECKING:
    from sdpo_ray.tables.delta_table import Table


def find(layout: Layout, turn_id: str) -> Interaction:
    """The interaction of this turn's answer, or of this comment. Raises ConfigError, saying why there is none.

    A comment on a turn is found by the turn's id, too, where nobody reacted to it in the chat.
    """
    import pyarrow.dataset as ds

    from sdpo_ray.tables.arrow_schemas import interactions_from_arrow

    if interactions := _existing(layout, "interactions"):
        named = (ds.field("interaction_id") == turn_id) | (ds.field("turn", "turn_id") == turn_id)
        found = interactions_from_arrow(interactions.read(where=named))
        if found:
            return min(found, key=lambda each: (each.interaction_id != turn_id, each.follow_up_at_s))
    turns = _existing(layout, "turns")
    if turns and turns.read(["turn_id"], where=ds.field("turn_id") == turn_id).num_rows:
        raise ConfigError(
            f"turn {turn_id} has no follow-up to learn from: nobody reacted to it yet, or the pair was not admitted"
        )
    raise ConfigError(
        f"no turn {turn_id} in the tables of {layout.root}; without --turn this job lists what is there, and "
        "jobs/curate.py brings in what was said since"
    )


def newest(layout: Layout, limit: int) -> list[Interaction]:
    """The last interactions, newest first. Raises ConfigError where there is none."""
    import pyarrow.dataset as ds

    from sdpo_ray.tables.arrow_schemas import interactions_from_arrow

    if table := _existing(layout, "interactions"):
        times = sorted(table.read(["follow_up_at_s"])["follow_up_at_s"].to_pylist())[-limit:]
        if times:
            found = interactions_from_arrow(table.read(where=ds.field("follow_up_at_s") >= times[0]))
            return sorted(found, key=lambda each: -each.follow_up_at_s)[:limit]
    raise ConfigError(
        f"no interactions under {layout.root} yet: name another run with --run or --set root=DIR, look at a file with "
        "--case, or run jobs/curate.py where people have talked already"
    )


def policy_of(run: Run, policy_version: int) -> tuple[Path, str]:
    """Directory of the policy that made an answer, else of the champion; and which of them it is, in words."""
    layout = run.layout
    record = layout.release(policy_version)
    places = [Path(read_json(record, Release).path)] if record.exists() else []
    places.append(layout.candidate(policy_version))
    if policy_version == BASE_VERSION:
        places.append(run.base)
    for place in places:
        if is_ready(place) or (policy_version == BASE_VERSION and (place / "config.json").exists()):
            return place, f"v{policy_version}, which made the answer"
    path, words = champion(run)
    return path, f"{words}; v{policy_version}, which made the answer, is no longer on disk"


def champion(run: Run) -> tuple[Path, str]:
    """Directory of what users are served, else of the run's base; and which of them it is, in words."""
    served = served_release(run.layout)
    if served is None:
        return run.base, "the run's base, for nothing was released yet"
    return Path(served.path), f"v{served.policy_version}, the champion"


def _existing(layout: Layout, name: str) -> "Table | None":
    """A table that somebody made; looking for one makes none."""
    from sdpo_ray.tables.create import table_exists
    from sdpo_ray.tables.delta_table import Table

    if not table_exists(layout, name):
        return None
    return Table.interactions(layout) if name == "interactions" else Table.turns(layout)
