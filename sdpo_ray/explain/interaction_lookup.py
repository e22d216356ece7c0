"""Find an interaction of a run by turn id, and the directory of the policy that answered it."""

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


def find_interaction(layout: Layout, turn_id: str) -> Interaction:
    """The interaction of a turn's answer, or of a comment by its own id.

    A turn without a follow-up gives the interaction of its comment, if it has one. Raises ConfigError with the reason
    if there is no interaction.
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
            f"turn {turn_id} has no follow-up to learn from: the user has not reacted yet, or the pair was not admitted"
        )
    raise ConfigError(
        f"no turn {turn_id} in the tables of {layout.root}; without --turn this command lists the newest, "
        "and `sdpo curate` stores later ones"
    )


def newest_interactions(layout: Layout, limit: int) -> list[Interaction]:
    """The last `limit` interactions, newest first. Raises ConfigError if there are none."""
    import pyarrow.dataset as ds

    from sdpo_ray.tables.arrow_schemas import interactions_from_arrow

    if table := _existing(layout, "interactions"):
        times = sorted(table.read(["follow_up_at_s"])["follow_up_at_s"].to_pylist())[-limit:]
        if times:
            found = interactions_from_arrow(table.read(where=ds.field("follow_up_at_s") >= times[0]))
            return sorted(found, key=lambda each: -each.follow_up_at_s)[:limit]
    raise ConfigError(
        f"no interactions under {layout.root} yet: name another run with --run or --set root=DIR, give a file with "
        "--case, or run `sdpo curate` if the event log has turns"
    )


def policy_that_answered(run: Run, policy_version: int) -> tuple[Path, str]:
    """Directory of the policy version that answered, else of the champion; and a description of which it is."""
    layout = run.layout
    record = layout.release(policy_version)
    directories = [Path(read_json(record, Release).path)] if record.exists() else []
    directories.append(layout.candidate(policy_version))
    if policy_version == BASE_VERSION:
        directories.append(run.base)
    for directory in directories:
        if is_ready(directory) or (policy_version == BASE_VERSION and (directory / "config.json").exists()):
            return directory, f"v{policy_version}, which made the answer"
    path, description = champion(run)
    return path, f"{description}; v{policy_version}, which made the answer, is no longer on disk"


def champion(run: Run) -> tuple[Path, str]:
    """Directory of the served release, else of the run's base; and a description of which it is."""
    served = served_release(run.layout)
    if served is None:
        return run.base, "the run's base, since nothing is released yet"
    return Path(served.path), f"v{served.policy_version}, the champion"


def _existing(layout: Layout, name: str) -> "Table | None":
    """The table, or None if it does not exist: opening it here must not create it."""
    from sdpo_ray.tables.create import table_exists
    from sdpo_ray.tables.delta_table import Table

    if not table_exists(layout, name):
        return None
    return Table.interactions(layout) if name == "interactions" else Table.turns(layout)
