"""What the books of a run say about where its policies come from; pure but for `read_run_history`.

An update is said to have learned from an interaction when its snapshot held it; the learner may have refused it.
"""

from collections.abc import Collection
from dataclasses import dataclass

from sdpo_ray.io.files import read_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.promote.release import released_versions, served_release
from sdpo_ray.records import CycleOutcome, CycleStart, Snapshot, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRecord:
    """One cycle that drew."""

    cycle: int
    policy_version: int
    parent_version: int
    snapshot: Snapshot
    trained: bool
    """Whether a candidate came of it."""
    verdict: Verdict | None
    """None while the cycle is under way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedVersion:
    """A policy that learned from some interactions, or from one that did. Printed by jobs."""

    policy_version: int
    snapshot_id: str
    num_interactions: int
    """Of those asked about, that its own snapshot held; 0 where it only inherits."""
    parent_version: int
    verdict: Verdict | None
    released: bool
    """Was served at some time: a rollback can bring it back."""
    served: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHistory:
    """What one run's files say."""

    updates: tuple[UpdateRecord, ...]
    """Oldest first."""
    released: frozenset[int]
    served: int | None

    def drew(self, interaction_ids: Collection[str]) -> list[UpdateRecord]:
        """The updates whose snapshots held one of these."""
        wanted = set(interaction_ids)
        return [update for update in self.updates if not wanted.isdisjoint(update.snapshot.interaction_ids)]

    def learned(self, interaction_ids: Collection[str]) -> list[LearnedVersion]:
        """Every policy that learned from one of these, and all that descend from it; oldest first."""
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

    def line(self, policy_version: int) -> list[UpdateRecord]:
        """The update that made a version, that of its parent, and so on back to the base."""
        by_version = {update.policy_version: update for update in self.updates}
        line = []
        while (update := by_version.get(policy_version)) is not None:
            line.append(update)
            policy_version = update.parent_version
        return line

    def newest_release_without(self, learned: Collection[LearnedVersion]) -> int | None:
        """The newest release that is none of these."""
        return max(self.released - {each.policy_version for each in learned}, default=None)


def read_run_history(layout: Layout) -> RunHistory:
    """The books as they are now. Raises DataError for a file that is not what its name says."""
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
