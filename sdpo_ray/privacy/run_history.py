"""Which policies of a run learned from which interactions; pure except for `read_run_history`.

An update counts as having learned from an interaction if its snapshot held it; the learner may have left it out.
"""

from collections.abc import Collection
from dataclasses import dataclass

from sdpo_ray.io.files import read_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.promote.release import released_versions, served_release
from sdpo_ray.records import CycleOutcome, CycleStart, Snapshot, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRecord:
    """One cycle that has drawn a snapshot."""

    cycle: int
    policy_version: int
    parent_version: int
    snapshot: Snapshot
    trained: bool
    """Whether it made a candidate."""
    verdict: Verdict | None
    """None while the cycle is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedVersion:
    """A policy that learned from given interactions, or descends from one that did. Printed by jobs."""

    policy_version: int
    snapshot_id: str
    num_interactions: int
    """How many of them its own snapshot held; 0 if only an ancestor learned from them."""
    parent_version: int
    verdict: Verdict | None
    released: bool
    """Was served at some time, so a rollback can serve it again."""
    served: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHistory:
    """The cycles and releases of one run. Made by `read_run_history`."""

    updates: tuple[UpdateRecord, ...]
    """Oldest first."""
    released: frozenset[int]
    served: int | None

    def updates_from(self, interaction_ids: Collection[str]) -> list[UpdateRecord]:
        """The updates whose snapshots held one of these interactions."""
        wanted = set(interaction_ids)
        return [update for update in self.updates if not wanted.isdisjoint(update.snapshot.interaction_ids)]

    def learned(self, interaction_ids: Collection[str]) -> list[LearnedVersion]:
        """Every policy that learned from one of these interactions, with its descendants; oldest first."""
        wanted, found = set(interaction_ids), dict[int, LearnedVersion]()
        for update in self.updates:
            held = len(wanted.intersection(update.snapshot.interaction_ids))
            if update.trained and (held or update.parent_version in found):
                found[update.policy_version] = LearnedVersion(
                    policy_version=update.policy_version,
                    snapshot_id=update.snapshot.snapshot_id,
                    num_interactions=held,
                    parent_version=update.parent_version,
                    verdict=update.verdict,
                    released=update.policy_version in self.released,
                    served=update.policy_version == self.served,
                )
        return list(found.values())

    def ancestry(self, policy_version: int) -> list[UpdateRecord]:
        """The update that made a version, the one that made its parent, and so on down to the base."""
        by_version = {update.policy_version: update for update in self.updates}
        found = []
        while (update := by_version.get(policy_version)) is not None:
            found.append(update)
            policy_version = update.parent_version
        return found

    def newest_release_without(self, learned: Collection[LearnedVersion]) -> int | None:
        """The newest release that is not among these; None if all are."""
        return max(self.released - {each.policy_version for each in learned}, default=None)


def read_run_history(layout: Layout) -> RunHistory:
    """Read the run's cycles and releases. Raises DataError for a file that does not hold its record."""
    updates = []
    for path in sorted((layout.root / "cycles").glob("*/draw.json")):
        outcome = path.with_name("release.json")
        started = read_json(path.with_name("start.json"), CycleStart)
        updates.append(
            UpdateRecord(
                cycle=started.cycle,
                policy_version=started.policy_version,
                parent_version=started.parent_version,
                snapshot=read_json(path, Snapshot),
                trained=path.with_name("distill.json").exists(),
                verdict=read_json(outcome, CycleOutcome).verdict if outcome.exists() else None,
            )
        )
    served = served_release(layout)
    return RunHistory(
        updates=tuple(updates),
        released=released_versions(layout),
        served=served.policy_version if served is not None else None,
    )
