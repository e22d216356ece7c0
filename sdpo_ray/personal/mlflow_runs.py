"""What MLflow keeps of personal policies: a run an attempt, in an experiment of their own, and nothing anybody said.

They have no model versions. Nobody reviews or rolls back those of ten thousand users by hand, they go with their
champion, and the page of the registered model is for what all are served.
"""

from collections.abc import Collection
from typing import Any

from sdpo_ray.promote.registry import Registry
from sdpo_ray.promote.run_log import CycleRecord

SUFFIX = "-personal"
"""Behind the model's name: the experiment."""
_OF_OWNER = ("owner", "serves")
_MOST = 5_000


class PersonalRuns:
    """The runs of one registry's personal policies."""

    def __init__(self, registry: Registry, *, model_name: str) -> None:
        self._registry = registry
        self._name = model_name + SUFFIX

    def record(self, owner: str, name: str, entry: CycleRecord) -> None:
        """Write the run of an attempt: its numbers. Safe to repeat.

        `entry.cycle` counts the attempts of `owner`; `name` is what is served from now on, empty where nothing is.
        """
        experiment = self._registry.experiment(self._name)
        found = self._search(experiment, f"tags.owner = '{owner}' and tags.attempt = '{entry.cycle}'")
        run = found[0] if found else self._create(experiment, owner, name, entry)
        if run.info.status != "FINISHED":
            self._registry.log_numbers(run, entry)
            self._registry.client.set_terminated(run.info.run_id, "FINISHED")

    def forget(self, owners: Collection[str]) -> int:
        """Delete the runs of these owners, and the tags that say whose they were; their number."""
        client = self._registry.client
        experiment = client.get_experiment_by_name(self._name)
        if experiment is None:
            return 0
        found = [run for owner in owners for run in self._search(experiment.experiment_id, f"tags.owner = '{owner}'")]
        for run in found:
            for tag in _OF_OWNER:
                client.delete_tag(run.info.run_id, tag)
            client.delete_run(run.info.run_id)
        return len(found)

    def _search(self, experiment: str, which: str) -> list[Any]:
        return list(self._registry.client.search_runs([experiment], which, max_results=_MOST))

    def _create(self, experiment: str, owner: str, name: str, entry: CycleRecord) -> Any:
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
        return self._registry.client.create_run(experiment, tags=tags, run_name=run_name)
