"""One interaction of a run by the id of its turn, and the policy that answered, as far as it is still on disk."""

from pathlib import Path

from sdpo_ray.config import Run
from sdpo_ray.errors import ConfigError
from sdpo_ray.promote.release import served_release
from sdpo_ray.records import Interaction, Release
from sdpo_ray.storage import Layout, is_ready, read_json

_BASE_VERSION = 0


def find(layout: Layout, turn_id: str) -> Interaction:
    """The interaction whose answer is this turn. Raises ConfigError, saying why there is none."""
    import pyarrow.dataset as ds

    from sdpo_ray.curate.store import Table
    from sdpo_ray.tables import interactions_from_arrow

    if layout.interactions.exists():
        rows = Table.interactions(layout).read(where=ds.field("interaction_id") == turn_id)
        if rows.num_rows:
            return interactions_from_arrow(rows)[0]
    if layout.turns.exists():
        turns = Table.turns(layout)
        if turns.read(["turn_id"], where=ds.field("turn_id") == turn_id).num_rows:
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

    from sdpo_ray.curate.store import Table
    from sdpo_ray.tables import interactions_from_arrow

    if layout.interactions.exists():
        table = Table.interactions(layout)
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
    layout = Layout(run.directory)
    record = layout.release(policy_version)
    places = [Path(read_json(record, Release).path)] if record.exists() else []
    places.append(layout.candidate(policy_version))
    if policy_version == _BASE_VERSION:
        places.append(run.base)
    for place in places:
        if is_ready(place) or (policy_version == _BASE_VERSION and (place / "config.json").exists()):
            return place, f"v{policy_version}, which made the answer"
    path, words = champion(run)
    return path, f"{words}; v{policy_version}, which made the answer, is no longer on disk"


def champion(run: Run) -> tuple[Path, str]:
    """Directory of what users are served, else of the run's base; and which of them it is, in words."""
    served = served_release(Layout(run.directory))
    if served is None:
        return run.base, "the run's base, for nothing was released yet"
    return Path(served.path), f"v{served.policy_version}, the champion"
