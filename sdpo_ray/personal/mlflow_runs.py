"""MLflow's runs of personal policies: one for each attempt, in an experiment of their own, without user text.

There are no model versions of them: the page of the registered model would hold one for each of ten thousand users,
no operator reviews those by hand, and they go stale with their champion.
"""

from collections.abc import Collection
from typing import Self

from sdpo_ray.config import Run
from sdpo_ray.promote.registry import Registry
from sdpo_ray.promote.run_log import CycleRecord
from sdpo_ray.promote.tracking import TrackedRun, Tracking

SUFFIX = "-personal"
"""The experiment's name is the model's name with this suffix."""
_OWNER_TAGS = ("owner", "serves")


class PersonalRuns:
    """The runs of one run file's personal policies."""

    def __init__(self, tracking: Tracking, *, model_name: str) -> None:
        self._tracking = tracking
        self._name = model_name + SUFFIX

    @classmethod
    def of(cls, run: Run) -> Self:
        """Connects to the tracking store of `run`."""
        return cls(Registry.of(run).tracking, model_name=run.promote.model_name)

    def record(self, owner: str, name: str, entry: CycleRecord) -> None:
        """Write an attempt's parameters and metrics. Safe to repeat.

        `entry.cycle` is the number of the attempt of `owner`; `name` is the served policy's, empty if none is served.
        """
        experiment = self._tracking.experiment(self._name)
        found = self._tracking.find(experiment, owner=owner, attempt=str(entry.cycle))
        run = found[0] if found else self._create(experiment, owner, name, entry)
        if not run.is_finished:
            self._tracking.log_numbers(run, entry)
            self._tracking.end(run)

    def erase(self, owners: Collection[str]) -> int:
        """Delete the runs of these owners and the tags that name the owner; returns the number of runs."""
        experiment = self._tracking.existing_experiment(self._name)
        if experiment is None:
            return 0
        found = [run for owner in owners for run in self._tracking.find(experiment, owner=owner)]
        for run in found:
            self._tracking.delete(run, _OWNER_TAGS)
        return len(found)

    def _create(self, experiment: str, owner: str, name: str, entry: CycleRecord) -> TrackedRun:
        tags = {
            "owner": owner,
            "attempt": str(entry.cycle),
            "base_version": str(entry.candidate.parent_version),
            "verdict": entry.decision.verdict.value,
            "serves": name,
            "mlflow.source.git.commit": entry.commit,
            "mlflow.note.content": "\n\n".join(entry.decision.reasons),
        }
        # Without the owner: MLflow keeps the name of a deleted run.
        run_name = f"attempt {entry.cycle} over v{entry.candidate.parent_version}"
        return self._tracking.create(experiment, run_name, tags)
