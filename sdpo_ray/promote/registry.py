"""MLflow's registry for one training loop: one run per cycle, one model version per policy version, two aliases.

The alias `candidate` names the newest policy that was evaluated, `champion` the one that users are meant to be served.
An operator approves or rejects by the tag `review`, and rolls back by moving `champion`. Every call may be repeated
after a crash: runs are found by their tag `cycle`, model versions by their number.
"""

import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

from sdpo_ray.config import Run
from sdpo_ray.io.code_version import code_commit
from sdpo_ray.io.paths import Layout
from sdpo_ray.promote.model_versions import UNRECORDED, ModelVersions
from sdpo_ray.promote.run_log import CycleRecord
from sdpo_ray.promote.tracking import FAILED, TrackedRun, Tracking
from sdpo_ray.records import CycleStart, Release, Verdict

logger = logging.getLogger(__name__)

Review: TypeAlias = Literal["approved", "rejected"]
CHAMPION = "champion"
CANDIDATE = "candidate"
_STATUS = {Verdict.PROMOTE: "passed", Verdict.HOLD: "held", Verdict.REJECT: "refused"}
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredVersion:
    """One model version, as an operator sees it. Made by `Registry.versions`; read by `jobs.review`."""

    policy_version: int
    status: str
    """base, passed, held, refused, champion, retired or unrecorded."""
    decision: str
    """The gate's verdict; empty for the base."""
    review: str
    """Value of the tag `review`."""
    reasons: str


class Registry:
    """MLflow's tracking store and model registry for one run.

    Without a `tracking_uri` both are `root`/mlflow.db, with artifacts in `root`/mlartifacts. The constructor imports
    MLflow and creates the database: about 10 s the first time, 5 s later. An MLflow server takes no version whose path
    is on a local disk: give candidates an `s3://` path there.
    """

    def __init__(self, layout: Layout, *, model_name: str, tracking_uri: str = "") -> None:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        layout.root.mkdir(parents=True, exist_ok=True)
        root = layout.root.resolve()
        self.tracking_uri = tracking_uri or f"sqlite:///{root}/mlflow.db"
        self._client: Any = MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)
        artifacts = None if tracking_uri else root / "mlartifacts"
        self.tracking = Tracking(self._client, layout, tracking_uri=self.tracking_uri, artifacts=artifacts)
        self._experiment = self.tracking.experiment(model_name)
        self._versions = ModelVersions(self._client, model_name)

    @classmethod
    def of(cls, run: Run) -> "Registry":
        """The registry that a run file names."""
        return cls(run.layout, model_name=run.promote.model_name, tracking_uri=run.promote.tracking_uri)

    def register_base(self, base: Release, *, served: Release) -> None:
        """Register the policy that the run starts from. Where `champion` names no policy, point it at `served`.

        Raises DataError as `record_cycle`.
        """
        about = "The policy that the run starts from."
        self._versions.register(base.policy_version, base.path, {"status": "base"}, about)
        if self.champion_version() is None:
            about = "Served before this registered model was made."
            self._versions.register(served.policy_version, served.path, {"status": UNRECORDED}, about)
            self.set_champion(served.policy_version)

    def record_cycle(self, entry: CycleRecord) -> None:
        """Write a cycle's run and model version, and point the alias `candidate` at it.

        Raises DataError where MLflow gives the model version another number than the policy's.
        """
        version, decision = entry.candidate.policy_version, entry.decision
        tags = {"verdict": decision.verdict.value, "mlflow.source.git.commit": entry.commit}
        run = self._run_of(entry.cycle, version, tags, decision.reasons)
        if run.is_finished:
            return
        self.tracking.log_numbers(run, entry)
        self.tracking.log_files(run, entry)
        parent = entry.candidate.parent_version
        self._register(version, parent, decision.verdict, decision.reasons, entry.candidate.path, run)
        self._versions.set_alias(CANDIDATE, version)
        self.tracking.end(run)

    def record_failure(self, start: CycleStart, reason: str) -> None:
        """Write the run and the model version of a cycle whose update produced no candidate.

        The model version has no weights: its source is the run's directory of artifacts. Raises as `record_cycle`.
        """
        tags = {"verdict": Verdict.REJECT.value, "mlflow.source.git.commit": code_commit()}
        run = self._run_of(start.cycle, start.policy_version, tags, (reason,))
        self._register(start.policy_version, start.parent_version, Verdict.REJECT, (reason,), run.artifact_uri, run)
        self.tracking.end(run, FAILED)

    def champion_version(self) -> int | None:
        """None where the alias was deleted, or names a model version that no run of ours created."""
        return self._versions.aliased(CHAMPION)

    def candidate_version(self) -> int | None:
        """The newest policy that was evaluated; None before the first."""
        return self._versions.aliased(CANDIDATE)

    def set_champion(self, policy_version: int) -> None:
        """Move `champion`, and mark the version that it named as retired. Raises DataError for an unknown version."""
        self._versions.require(policy_version)
        self._versions.set_alias(CHAMPION, policy_version)
        for other, tags in self._versions.all():
            if tags.get("status") == CHAMPION and other != policy_version:
                self._versions.set_tag(other, "status", "retired")
        self._versions.set_tag(policy_version, "status", CHAMPION)

    def versions(self) -> tuple[RegisteredVersion, ...]:
        """Every policy version, the oldest first."""
        return tuple(
            RegisteredVersion(
                policy_version=number,
                **{name: tags.get(name, "") for name in ("status", "decision", "review", "reasons")},
            )
            for number, tags in self._versions.all()
        )

    def review(self, policy_version: int) -> Review | None:
        """The tag `review`, in any case; None where it is missing or has another value."""
        word = self._versions.require(policy_version).get("review", "").strip().lower()
        if word and word not in get_args(Review):
            logger.warning("v%d: review=%r is neither approved nor rejected", policy_version, word)
        return cast("Review", word) if word in get_args(Review) else None

    def tag(self, policy_version: int, key: str, value: str) -> None:
        """Set a tag of a model version. Raises DataError for an unknown version."""
        self._versions.require(policy_version)
        self._versions.set_tag(policy_version, key, value)

    def erase(self, erased: Collection[str]) -> int:
        """Write the artifacts of all cycles again without these interactions; how many runs showed one of them."""
        return self.tracking.erase(self._experiment, erased)

    def _register(
        self, version: int, parent: int, verdict: Verdict, reasons: Collection[str], source: str, run: TrackedRun
    ) -> None:
        text = "; ".join(reasons)
        tags = {"parent": str(parent), "decision": verdict.value, "reasons": text, "status": _STATUS[verdict]}
        self._versions.register(version, source, tags, f"{verdict}: {text}", run_id=run.run_id)

    def _run_of(self, cycle: int, policy_version: int, tags: Mapping[str, str], reasons: Collection[str]) -> TrackedRun:
        if found := self.tracking.find(self._experiment, cycle=str(cycle)):
            return found[0]
        about = {
            "cycle": str(cycle),
            "policy_version": str(policy_version),
            "mlflow.note.content": "\n\n".join(reasons),
        }
        return self.tracking.create(self._experiment, f"cycle {cycle}: v{policy_version}", {**about, **tags})
