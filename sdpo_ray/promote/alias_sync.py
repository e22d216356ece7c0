"""Keeps MLflow's alias `champion` and the release pointer in agreement.

MLflow does not record who moved an alias, and lets every client move it to any version. A moved alias is therefore a
request: the pointer follows it to a version that was released before or that the gate has passed, and to no other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from sdpo_ray.errors import ReleaseError
from sdpo_ray.io.paths import Layout
from sdpo_ray.promote.release import point_at, released_versions, rollback, served_release
from sdpo_ray.records import Candidate, Release


class AliasAction(StrEnum):
    """What is done about the alias."""

    STAY = "stay"
    """It names what is served."""
    FOLLOW = "follow"
    """Serve what it names."""
    RESTORE = "restore"
    """Move it back to what is served."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasSyncResult:
    """What was done. Made by `sync_alias`; read by `pipeline.stages`."""

    action: AliasAction
    alias_version: int | None
    """The version that the alias named; None where it was deleted."""
    release: Release
    """What the pointer names now."""


def choose_alias_action(*, alias: int | None, served: int, was_released: bool, passed_gate: bool) -> AliasAction:
    """Action for an alias; `was_released` and `passed_gate` are about the version that it names."""
    if alias == served:
        return AliasAction.STAY
    if alias is not None and (was_released or passed_gate):
        return AliasAction.FOLLOW
    return AliasAction.RESTORE


def sync_alias(
    layout: Layout,
    *,
    champion: Callable[[], int | None],
    set_champion: Callable[[int], None],
    passed: Callable[[int], Candidate | None],
) -> AliasSyncResult:
    """Make pointer and alias agree. Does not wait for the replicas; `release.confirm` does.

    `passed` returns the candidate of a version that the gate promoted, and None for any other. It should read the run's
    own records, since every client can edit MLflow's. Raises ReleaseError before the first release.
    """
    served = served_release(layout)
    if served is None:
        raise ReleaseError("nothing was released yet: start serving first")
    alias = champion()
    was_released = alias in released_versions(layout)
    candidate = passed(alias) if alias is not None and alias != served.policy_version and not was_released else None
    action = choose_alias_action(
        alias=alias, served=served.policy_version, was_released=was_released, passed_gate=candidate is not None
    )
    if action is AliasAction.FOLLOW:
        served = point_at(layout, candidate) if candidate is not None else rollback(layout, alias)
    if action is not AliasAction.STAY:
        set_champion(served.policy_version)
    return AliasSyncResult(action=action, alias_version=alias, release=served)
