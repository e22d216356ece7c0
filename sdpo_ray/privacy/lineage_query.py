"""Read from a run's directory what was learned from a user or a turn, and what a release was learned from."""

from sdpo_ray.errors import ConfigError
from sdpo_ray.io.paths import Layout
from sdpo_ray.personal.store import snapshot_uses
from sdpo_ray.privacy.data_subject import find_data_subject
from sdpo_ray.privacy.lineage import Ancestor, Lineage, ancestors, trace_lineage
from sdpo_ray.privacy.run_history import read_run_history
from sdpo_ray.privacy.snapshot_erasure import users_of
from sdpo_ray.privacy.user_footprint import UserTables, footprint_of


def lineage_of(layout: Layout, tenant: str, user: str | None, turn: str | None) -> Lineage:
    """Snapshots and policies that drew from a user, or from one turn without its conversation.

    Raises ConfigError if neither is given, or there is no run.
    """
    subject = find_data_subject(layout, tenant=tenant, user=user, turn_ids=() if turn is None else (turn,))
    footprint = footprint_of(UserTables.of(layout), subject.users, also=subject.turn_ids)
    own = footprint.source_ids | footprint.interaction_ids
    ids = subject.interaction_ids(layout, footprint) if turn is None else own
    return trace_lineage(read_run_history(layout), footprint, ids, snapshot_uses(layout, ids))


def ancestors_of(layout: Layout, release: str) -> list[Ancestor]:
    """A policy version such as `v7`, its parent, and so on to the base. Raises ConfigError for another form."""
    number = release.removeprefix("v")
    if not number.isdecimal():
        raise ConfigError(f"--release {release}: a policy version is a number, such as v7")
    return ancestors(read_run_history(layout), int(number), users_of)
