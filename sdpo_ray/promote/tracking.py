"""MLflow's experiments and runs: what one update was made from, what was measured, and files to look at."""

import json
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_ray.io.files import read_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.promote import run_log
from sdpo_ray.promote.artifact_erasure import erase_in_file
from sdpo_ray.promote.run_log import CycleRecord, parameters, points, write_files
from sdpo_ray.records import Candidate, Snapshot
from sdpo_ray.upstream.mlflow import artifact_repository

FINISHED, FAILED = "FINISHED", "FAILED"
_METRICS, _PARAMETERS, _RUNS = 500, 100, 5_000
"""Of one call. MLflow takes at most 1,000 metrics and 100 parameters, and gives at most 50,000 runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """One run of MLflow. Made by `Tracking`; read by `promote.registry` and `personal.mlflow_runs`."""

    run_id: str
    status: str
    start_time_ms: int
    artifact_uri: str
    parameters: frozenset[str]
    """Names of the parameters that it has."""
    tags: Mapping[str, str]

    @property
    def is_finished(self) -> bool:
        return self.status == FINISHED


class Tracking:
    """The tracking store of one run, by MLflow's client. `artifacts` is a directory for the files of new experiments,
    and None where the tracking server decides.
    """

    def __init__(self, client: Any, layout: Layout, *, tracking_uri: str, artifacts: Path | None) -> None:
        self._client = client
        self._layout = layout
        self._uri = tracking_uri
        self._artifacts = artifacts

    def experiment(self, name: str) -> str:
        """Id of the experiment `name`, which is created where there is none."""
        from mlflow.exceptions import MlflowException

        location = self._artifacts.as_uri() if self._artifacts is not None else None
        try:
            return str(self._client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self._client.get_experiment_by_name(name).experiment_id)

    def existing_experiment(self, name: str) -> str | None:
        """Id of the experiment `name`; None where there is none."""
        found = self._client.get_experiment_by_name(name)
        return None if found is None else str(found.experiment_id)

    def find(self, experiment: str, **tags: str) -> list[TrackedRun]:
        """Runs with all these tags, the newest first; deleted ones are not among them."""
        wanted = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
        return [_tracked(run) for run in self._client.search_runs([experiment], wanted, max_results=_RUNS)]

    def create(self, experiment: str, name: str, tags: Mapping[str, str]) -> TrackedRun:
        """A new run."""
        return _tracked(self._client.create_run(experiment, tags=dict(tags), run_name=name))

    def end(self, run: TrackedRun, status: str = FINISHED) -> None:
        """Set the run's end and its status."""
        self._client.set_terminated(run.run_id, status)

    def delete(self, run: TrackedRun, tags: Collection[str]) -> None:
        """Delete the run, after these tags of it: MLflow keeps what a deleted run says until it is purged."""
        for tag in tags:
            self._client.delete_tag(run.run_id, tag)
        self._client.delete_run(run.run_id)

    def log_numbers(self, run: TrackedRun, entry: CycleRecord) -> None:
        """Write the parameters, the metrics and the snapshot of an update."""
        from mlflow.entities import Metric, Param

        # MLflow refuses to change a parameter: a resumed attempt keeps what the killed one wrote.
        params = [Param(name, value) for name, value in parameters(entry).items() if name not in run.parameters]
        for start in range(0, len(params), _PARAMETERS):
            self._client.log_batch(run.run_id, params=params[start : start + _PARAMETERS])
        # A metric is identified by its time, too: with the run's own, a repetition writes the same points, not more.
        metrics = [Metric(point.name, point.value, run.start_time_ms, point.step) for point in points(entry)]
        for start in range(0, len(metrics), _METRICS):
            self._client.log_batch(run.run_id, metrics=metrics[start : start + _METRICS])
        self._client.log_inputs(run.run_id, [_dataset(entry.snapshot, self._layout)])

    def log_files(self, run: TrackedRun, entry: CycleRecord) -> None:
        """Write the records and figures of a cycle as artifacts."""
        with tempfile.TemporaryDirectory() as folder:
            write_files(entry, Path(folder))
            self._client.log_artifacts(run.run_id, folder)

    def erase(self, experiment: str, erased: Collection[str]) -> int:
        """Write the artifacts again without these interactions, those of deleted runs, too.

        Returns how many runs showed one of them.
        """
        from mlflow.entities import ViewType

        num_runs, token = 0, None
        while token is None or token:
            page = self._client.search_runs([experiment], run_view_type=ViewType.ALL, page_token=token)
            num_runs += sum(self._erase_in(_tracked(run), erased) for run in page)
            token = page.token or ""
        return num_runs

    def _erase_in(self, run: TrackedRun, erased: Collection[str]) -> bool:
        artifacts = artifact_repository(run.artifact_uri, tracking_uri=self._uri)
        names = {each.path for each in artifacts.list_artifacts()}
        if run_log.CANDIDATE_FILE not in names:
            return False
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            record = folder / run_log.CANDIDATE_FILE
            artifacts.download_artifacts(run_log.CANDIDATE_FILE, str(folder))
            if not erase_in_file(record, erased):
                return False
            run_log.write_attributions(read_json(record, Candidate), folder, cycle=int(run.tags.get("cycle", 0)))
            for figure in run_log.ATTRIBUTION_FILES:
                if (folder / figure).exists():
                    artifacts.log_artifact(str(folder / figure))
                elif figure in names:
                    artifacts.delete_artifacts(figure)
            # Last, since a killed attempt is found again by what the record shows.
            artifacts.log_artifact(str(record))
        return True


def _tracked(run: Any) -> TrackedRun:
    return TrackedRun(
        run_id=run.info.run_id,
        status=run.info.status,
        start_time_ms=run.info.start_time,
        artifact_uri=run.info.artifact_uri,
        parameters=frozenset(run.data.params),
        tags=dict(run.data.tags),
    )


def _dataset(snapshot: Snapshot, layout: Layout) -> Any:
    """The snapshot as an input that MLflow reads back as a `DeltaDatasetSource`, of which only `load` needs Spark."""
    from mlflow.data.delta_dataset_source import DeltaDatasetSource
    from mlflow.entities import Dataset, DatasetInput

    source = DeltaDatasetSource(path=layout.table("interactions"), delta_table_version=snapshot.table_version)
    profile = {
        "num_interactions": len(snapshot.interaction_ids),
        "num_held_out": len(snapshot.held_out_ids),
        "not_drawn": {each.reason: each.n for each in snapshot.not_drawn},
        "rule": snapshot.rule,
        "seed": snapshot.seed,
        "last_batch": snapshot.last_batch,
        "digest": snapshot.digest,
    }
    return DatasetInput(
        Dataset(
            name=snapshot.snapshot_id,
            # MLflow keeps 36 characters of a digest.
            digest=snapshot.digest[:36],
            source_type="delta_table",
            source=source.to_json(),
            profile=json.dumps(profile),
        )
    )
