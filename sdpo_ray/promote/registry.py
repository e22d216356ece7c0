"""The only door to MLflow: one run per cycle, one model version per policy version, two aliases.

`candidate` names the newest policy that was evaluated, `champion` the one that users are meant to be served.
A person approves or rejects by the tag `review`, and rolls back by moving `champion`. Everything here may be
repeated after a crash: runs are found by their tag `cycle`, model versions by their tag `policy_version`.
"""

import json
import logging
import os
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from sdpo_ray.errors import DataError
from sdpo_ray.io.files import read_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.promote import run_log
from sdpo_ray.promote.artifact_erasure import forget_in_file
from sdpo_ray.promote.run_log import CycleRecord, parameters, points, write_files
from sdpo_ray.records import Candidate, Release, Snapshot, Verdict

logger = logging.getLogger(__name__)

Review: TypeAlias = Literal["approved", "rejected"]
CHAMPION = "champion"
CANDIDATE = "candidate"
_STATUS = {Verdict.PROMOTE: "passed", Verdict.HOLD: "held", Verdict.REJECT: "refused"}
_METRICS, _PARAMETERS = 500, 100
"""MLflow takes at most 1,000 metrics and 100 parameters a call."""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredVersion:
    """One model version, as a person sees it. Made by `Registry.versions`; read by jobs."""

    policy_version: int
    status: str
    """base, passed, held, refused, champion or retired."""
    decision: str
    """The gate's verdict; empty for the base."""
    review: str
    """What a person wrote into the tag."""
    reasons: str


class Registry:
    """MLflow's tracking store and model registry for one run.

    Without a `tracking_uri` both are `root`/mlflow.db, with artifacts in `root`/mlartifacts. Building one
    imports MLflow and makes the database: about 10 s the first time, 5 s later. An MLflow server takes no
    version whose path is on a local disk: give candidates an `s3://` path there.
    """

    def __init__(self, layout: Layout, *, model_name: str, tracking_uri: str = "") -> None:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        layout.root.mkdir(parents=True, exist_ok=True)
        self._layout = layout
        self._model = model_name
        self.tracking_uri = tracking_uri or f"sqlite:///{layout.root.resolve()}/mlflow.db"
        self._client: Any = MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)
        self._is_local = not tracking_uri
        self._experiment = self.experiment(model_name)
        self._register_model()

    @property
    def client(self) -> Any:
        """MLflow's own."""
        return self._client

    def register_base(self, base: Release) -> None:
        """Register the policy that everything starts from; it is the champion until something passes."""
        if self._find(base.policy_version) is None:
            tags = {"policy_version": str(base.policy_version), "status": "base"}
            self._client.create_model_version(
                self._model, _uri(base.path), tags=tags, description="The policy that everything starts from."
            )
        if self.champion_version() is None:
            self.set_champion(base.policy_version)

    def record_cycle(self, entry: CycleRecord) -> None:
        """Write a cycle's run and model version, and point the alias `candidate` at it."""
        run = self._find_run(entry.cycle) or self._create_run(entry)
        if run.info.status == "FINISHED":
            return
        self._log(run, entry)
        version = self._find(entry.candidate.policy_version) or self._create_version(run.info.run_id, entry)
        self._client.set_registered_model_alias(self._model, CANDIDATE, version.version)
        self._client.set_terminated(run.info.run_id, "FINISHED")

    def champion_version(self) -> int | None:
        """None where a person deleted the alias, or moved it to a model version that is not ours."""
        return self._aliased(CHAMPION)

    def candidate_version(self) -> int | None:
        return self._aliased(CANDIDATE)

    def set_champion(self, policy_version: int) -> None:
        """Move `champion`, and mark whoever was it as retired. Raises DataError for an unknown version."""
        version = self._require(policy_version)
        self._client.set_registered_model_alias(self._model, CHAMPION, version.version)
        for other in self._client.search_model_versions(f"name = '{self._model}' and tags.status = 'champion'"):
            if other.version != version.version:
                self._client.set_model_version_tag(self._model, other.version, "status", "retired")
        self._client.set_model_version_tag(self._model, version.version, "status", "champion")

    def versions(self) -> tuple[RegisteredVersion, ...]:
        """Every policy version, the oldest first."""
        found, token = [], None
        while token is None or token:
            page = self._client.search_model_versions(f"name = '{self._model}'", page_token=token)
            found += [each.tags for each in page if each.tags.get("policy_version", "").isdecimal()]
            token = page.token or ""
        registered = (
            RegisteredVersion(
                policy_version=int(tags["policy_version"]),
                **{name: tags.get(name, "") for name in ("status", "decision", "review", "reasons")},
            )
            for tags in found
        )
        return tuple(sorted(registered, key=lambda each: each.policy_version))

    def review(self, policy_version: int) -> Review | None:
        """What a person wrote into the tag `review`, in any case; None for nothing, or for other words."""
        word = self._require(policy_version).tags.get("review", "").strip().lower()
        if word and word not in get_args(Review):
            logger.warning("v%d: review=%r is neither approved nor rejected", policy_version, word)
        return cast("Review", word) if word in get_args(Review) else None

    def tag(self, policy_version: int, key: str, value: str) -> None:
        """Set a tag of a model version. Raises DataError for an unknown version."""
        self._client.set_model_version_tag(self._model, self._require(policy_version).version, key, value)

    def forget(self, erased: Collection[str]) -> int:
        """Draw artifacts again without these interactions, of deleted runs, too; how many runs showed one."""
        from mlflow.entities import ViewType

        num_runs, token = 0, None
        while token is None or token:
            page = self._client.search_runs([self._experiment], run_view_type=ViewType.ALL, page_token=token)
            num_runs += sum(self._forget_in(run, erased) for run in page)
            token = page.token or ""
        return num_runs

    def experiment(self, name: str) -> str:
        """Id of an experiment, which is made where there is none."""
        from mlflow.exceptions import MlflowException

        place = (self._layout.root.resolve() / "mlartifacts").as_uri() if self._is_local else None
        try:
            return str(self._client.create_experiment(name, artifact_location=place))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return str(self._client.get_experiment_by_name(name).experiment_id)

    def _register_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(self._model, description="The policy that keeps learning.")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _find_run(self, cycle: int) -> Any:
        runs = self._client.search_runs([self._experiment], f"tags.cycle = '{cycle}'", max_results=1)
        return runs[0] if runs else None

    def _create_run(self, entry: CycleRecord) -> Any:
        tags = {
            "cycle": str(entry.cycle),
            "policy_version": str(entry.candidate.policy_version),
            "verdict": entry.decision.verdict.value,
            "mlflow.source.git.commit": entry.commit,
            "mlflow.note.content": "\n\n".join(entry.decision.reasons),
        }
        name = f"cycle {entry.cycle}: v{entry.candidate.policy_version}"
        return self._client.create_run(self._experiment, tags=tags, run_name=name)

    def _log(self, run: Any, entry: CycleRecord) -> None:
        self.log_numbers(run, entry)
        with tempfile.TemporaryDirectory() as folder:
            write_files(entry, Path(folder))
            self._client.log_artifacts(run.info.run_id, folder)

    def log_numbers(self, run: Any, entry: CycleRecord) -> None:
        """Parameters, metrics and the snapshot of an update, on one of MLflow's runs."""
        from mlflow.entities import Metric, Param

        run_id = run.info.run_id
        # MLflow refuses to change a parameter: what a killed attempt wrote is what the cycle began with.
        known = run.data.params
        params = [Param(name, value) for name, value in parameters(entry).items() if name not in known]
        for start in range(0, len(params), _PARAMETERS):
            self._client.log_batch(run_id, params=params[start : start + _PARAMETERS])
        # A metric is its time too: with the run's own, a repetition writes the same points, not more of them.
        metrics = [Metric(point.name, point.value, run.info.start_time, point.step) for point in points(entry)]
        for start in range(0, len(metrics), _METRICS):
            self._client.log_batch(run_id, metrics=metrics[start : start + _METRICS])
        self._client.log_inputs(run_id, [_dataset(entry.snapshot, self._layout)])

    def _create_version(self, run_id: str, entry: CycleRecord) -> Any:
        decision = entry.decision
        tags = {
            "policy_version": str(entry.candidate.policy_version),
            "parent": str(entry.candidate.parent_version),
            "decision": decision.verdict.value,
            "reasons": "; ".join(decision.reasons),
            "status": _STATUS[decision.verdict],
        }
        description = f"{decision.verdict}: {'; '.join(decision.reasons)}"
        return self._client.create_model_version(
            self._model, _uri(entry.candidate.path), run_id=run_id, tags=tags, description=description
        )

    def _find(self, policy_version: int) -> Any:
        found = self._client.search_model_versions(
            f"name = '{self._model}' and tags.policy_version = '{policy_version}'", max_results=1
        )
        return found[0] if found else None

    def _require(self, policy_version: int) -> Any:
        version = self._find(policy_version)
        if version is None:
            raise DataError(f"MLflow's model {self._model} has no version for v{policy_version}")
        return version

    def _aliased(self, alias: str) -> int | None:
        version = self._client.get_registered_model(self._model).aliases.get(alias)
        if version is None:
            return None
        number = self._client.get_model_version(self._model, version).tags.get("policy_version", "")
        return int(number) if number.isdecimal() else None

    def _forget_in(self, run: Any, erased: Collection[str]) -> bool:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        artifacts = get_artifact_repository(run.info.artifact_uri, tracking_uri=self.tracking_uri)
        names = {each.path for each in artifacts.list_artifacts()}
        if run_log.CANDIDATE_FILE not in names:
            return False
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            record = folder / run_log.CANDIDATE_FILE
            artifacts.download_artifacts(run_log.CANDIDATE_FILE, str(folder))
            if not forget_in_file(record, erased):
                return False
            run_log.write_signals(read_json(record, Candidate), folder, cycle=int(run.data.tags.get("cycle", 0)))
            for figure in run_log.SIGNALS:
                if (folder / figure).exists():
                    artifacts.log_artifact(str(folder / figure))
                elif figure in names:
                    artifacts.delete_artifacts(figure)
            # Last, since a killed attempt is found again by what it says.
            artifacts.log_artifact(str(record))
        return True


def _uri(path: str) -> str:
    return path if "://" in path else Path(path).resolve().as_uri()


def _dataset(snapshot: Snapshot, layout: Layout) -> Any:
    """The snapshot as an input that MLflow reads back as a `DeltaDatasetSource`, whose `load` alone asks for Spark."""
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
