"""Lineage in both directions: snapshots and policies that come from a user or a turn, and the ancestors of a policy."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpo_ray.errors import ConfigError
from sdpo_ray.io.files import is_ready
from sdpo_ray.io.paths import Layout
from sdpo_ray.personal import store
from sdpo_ray.privacy.data_subject import find_data_subject
from sdpo_ray.privacy.run_history import LearnedVersion, RunHistory, UpdateRecord, read_run_history
from sdpo_ray.privacy.snapshot_erasure import users_of as users_of_snapshot
from sdpo_ray.privacy.user_footprint import UserFootprint, UserTables, footprint_of
from sdpo_ray.records import BASE_VERSION, Verdict
from sdpo_ray.tables.snapshot_files import read_erased


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotUse:
    """A snapshot that held some of the interactions in question. Printed by `jobs.lineage`."""

    cycle: int
    snapshot_id: str
    num_interactions: int
    policy_version: int
    trained: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """What came of the turns of a user, or of one turn. Printed by `jobs.lineage`."""

    num_turns: int
    num_feedback: int
    num_interactions: int
    """All three: rows of the tables now."""
    snapshots: list[SnapshotUse]
    learned: list[LearnedVersion]
    personal: list[store.PersonalSnapshotUse]
    """Personal policies, and attempts at one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserShare:
    tenant: str
    user: str
    """Pseudonym; empty for all anonymous ones."""
    num_interactions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestor:
    """A policy, its parent and so on, down to the base. Printed by `jobs.lineage`."""

    policy_version: int
    cycle: int
    snapshot_id: str
    """Empty for the base."""
    num_interactions: int
    """Drawn by its snapshot."""
    num_erased: int
    """How many of them were erased since."""
    users: list[UserShare]
    """Of the rows that are left, most first."""
    verdict: Verdict | None
    released: bool
    served: bool


def lineage_of(layout: Layout, tenant: str, user: str | None, turn: str | None) -> Lineage:
    """Snapshots and policies that drew from a user, or from one turn without its conversation.

    Raises ConfigError if neither is given, or there is no run.
    """
    subject = find_data_subject(layout, tenant=tenant, user=user, turn_ids=() if turn is None else (turn,))
    footprint = footprint_of(UserTables.of(layout), subject.users, also=subject.turn_ids)
    own = footprint.source_ids | footprint.interaction_ids
    ids = subject.interaction_ids(layout, footprint) if turn is None else own
    return trace_lineage(read_run_history(layout), footprint, ids, store.snapshot_uses(layout, ids))


def ancestors_of(layout: Layout, release: str) -> list[Ancestor]:
    """A policy version such as `v7`, its parent, and so on to the base. Raises ConfigError for another form."""
    number = release.removeprefix("v")
    if not number.isdecimal():
        raise ConfigError(f"--release {release}: a policy version is a number, such as v7")
    return ancestors(read_run_history(layout), int(number), users_of_snapshot)


def trace_lineage(
    history: RunHistory,
    footprint: UserFootprint,
    interaction_ids: Collection[str],
    personal: Sequence[store.PersonalSnapshotUse] = (),
) -> Lineage:
    """What came of `footprint`, whose interactions have, or had before an erasure, these ids."""
    wanted = set(interaction_ids)
    return Lineage(
        num_turns=len(footprint.turn_ids),
        num_feedback=len(footprint.feedback_ids),
        num_interactions=len(footprint.interaction_ids),
        snapshots=[
            SnapshotUse(
                cycle=update.cycle,
                snapshot_id=update.snapshot.snapshot_id,
                num_interactions=len(wanted.intersection(update.snapshot.interaction_ids)),
                policy_version=update.policy_version,
                trained=update.trained,
            )
            for update in history.updates_from(wanted)
        ],
        learned=history.learned(wanted),
        personal=list(personal),
    )


def ancestors(
    history: RunHistory, policy_version: int, users_of: Callable[[Path], Mapping[tuple[str, str], int]]
) -> list[Ancestor]:
    """A version, its parent, and so on down to the base; `users_of` counts the rows of a snapshot by user.

    Raises ConfigError for a version that no cycle made.
    """
    line = history.ancestry(policy_version)
    if not line and policy_version != BASE_VERSION:
        known = ", ".join(f"v{update.policy_version}" for update in history.updates) or "none yet"
        raise ConfigError(f"no cycle of this run made v{policy_version}; there are: {known}")
    return [*(_ancestor(history, update, users_of) for update in line), _base(history)]


def _ancestor(
    history: RunHistory, update: UpdateRecord, users_of: Callable[[Path], Mapping[tuple[str, str], int]]
) -> Ancestor:
    snapshot = update.snapshot
    path = Path(snapshot.path)
    held = users_of(path) if is_ready(path) else {}
    by_size = sorted(held.items(), key=lambda each: (-each[1], each[0]))
    return Ancestor(
        policy_version=update.policy_version,
        cycle=update.cycle,
        snapshot_id=snapshot.snapshot_id,
        num_interactions=len(snapshot.interaction_ids),
        num_erased=len({row.interaction_id for row in read_erased(path)}),
        users=[UserShare(tenant=tenant, user=user, num_interactions=n) for (tenant, user), n in by_size],
        verdict=update.verdict,
        released=update.policy_version in history.released,
        served=update.policy_version == history.served,
    )


def _base(history: RunHistory) -> Ancestor:
    return Ancestor(
        policy_version=BASE_VERSION,
        cycle=0,
        snapshot_id="",
        num_interactions=0,
        num_erased=0,
        users=[],
        verdict=None,
        released=BASE_VERSION in history.released,
        served=history.served == BASE_VERSION,
    )
