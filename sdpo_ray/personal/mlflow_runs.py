"""What MLflow keeps of personal policies: a run an attempt, in an experiment of their own, and nothing anybody said.

They have no model versions. Nobody reviews or rolls back those of ten thousand users by hand, they go with their
champion, and the page of the registered model is for what all are served.
"""

from collections.abc import Collection

from sdpo_ray.promote.run_log import CycleRecord
from sdpo_ray.promote.tracking import TrackedRun, Tracking

SUFFIX = "-personal"
"""Behind the model's name: the experiment."""
_OF_OWNER = ("owner", "serves")


class PersonalRuns:
    """The runs of one registry's personal policies."""

    def __init__(self, tracking: Tracking, *, model_name: str) -> None:
        self._tracking = tracking
        self._name = model_name + SUFFIX

    def record(self, owner: str, name: str, entry: CycleRecord) -> None:
        """Write the run of an attempt: its numbers. Safe to repeat.

        `entry.cycle` counts the attempts of `owner`; `name` is what is served from now on, empty where nothing is.
        """
        experiment = self._tracking.experiment(self._name)
        found = self._tracking.find(experiment, owner=owner, attempt=str(entry.cycle))
        run = found[0] if found else self._create(experiment, owner, name, entry)
        if not run.is_finished:
            self._tracking.log_numbers(run, entry)
            self._tracking.end(run)

    def forget(self, owners: Collection[str]) -> int:
        """Delete the runs of these owners, and the tags that say whose they were; their number."""
        experiment = self._tracking.existing_experiment(self._name)
        if experiment is None:
            return 0
        found = [run for owner in owners for run in self._tracking.find(experiment, owner=owner)]
        for run in found:
            self._tracking.delete(run, _OF_OWNER)
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
        # Named without its owner: a deleted run keeps its name.
        run_name = f"attempt {entry.cycle} over v{entry.candidate.parent_version}"
        return self._tracking.create(experiment, run_name, tags)
