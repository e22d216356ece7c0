"""The end of an update of a personal policy: its outcome on disk, in MLflow and at the owner's pointer."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdpo_ray.config import Run
from sdpo_ray.errors import NotReady
from sdpo_ray.io.code_version import code_commit
from sdpo_ray.io.files import is_ready
from sdpo_ray.io.paths import Layout
from sdpo_ray.personal import store
from sdpo_ray.personal.config import distill_config
from sdpo_ray.personal.mlflow_runs import PersonalRuns
from sdpo_ray.personal.owners import Owner
from sdpo_ray.personal.store import Attempt
from sdpo_ray.promote.run_log import CycleRecord
from sdpo_ray.records import Candidate, Decision, Release, Report, Snapshot, Verdict
from sdpo_ray.records.run_events import PersonalUpdateFinished
from sdpo_ray.tables.snapshot_files import read_erased
from sdpo_ray.telemetry import EventFile


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedUpdate:
    """An update after the gate. Made by `personal.trainer`; read by `publish`."""

    owner: Owner
    version: int
    seed: int
    champion: Release
    """The policy that it was trained over."""
    snapshot: Snapshot
    decision: Decision
    candidate: Candidate | None = None
    report: Report | None = None
    """Both None if the learner refused the update."""


def publish(run: Run, update: JudgedUpdate, runs: PersonalRuns, *, champion: Release) -> Attempt:
    """Record an update, and serve its policy if the verdict is PROMOTE; returns the recorded attempt.

    The caller holds the lock of `Layout.personal`, so no erasure runs meanwhile. An erasure since the draw removes
    everything of the owner, and NotReady is raised. PROMOTE becomes HOLD if `champion`, which is served now, is not the
    policy that the update was trained over.
    """
    layout, owner = run.layout, update.owner
    snapshot_path = Path(update.snapshot.path)
    if not is_ready(snapshot_path) or read_erased(snapshot_path):
        store.remove(layout, owner.digest)
        raise NotReady("some of what it learned from was erased meanwhile: nothing is kept of it")
    decision, policy = _decision_over(champion, update), None
    if decision.verdict is Verdict.PROMOTE and update.candidate is not None:
        policy = store.seal_adapter(layout, owner.digest, update.candidate)
    attempt = Attempt(
        owner=owner.digest,
        version=update.version,
        base_version=update.champion.policy_version,
        snapshot=update.snapshot,
        verdict=decision.verdict,
        reasons=decision.reasons,
        name=policy.name if policy is not None else "",
        report=update.report,
        ended_at_s=time.time(),
    )
    _record_in_mlflow(run, update, attempt, decision, runs)
    store.conclude(layout, attempt, policy)
    if policy is not None:
        remove_owners(layout, runs, owner.former)
    EventFile(layout.events).write(
        PersonalUpdateFinished(
            owner=attempt.owner,
            version=attempt.version,
            base_version=attempt.base_version,
            verdict=attempt.verdict,
            reasons=attempt.reasons,
        )
    )
    return attempt


def remove_owners(layout: Layout, runs: PersonalRuns, owners: Sequence[str]) -> list[str]:
    """Remove everything of these owners, runs in MLflow included; returns those who had anything on disk."""
    runs.erase(owners)
    return [owner for owner in owners if store.remove(layout, owner)]


def _decision_over(champion: Release, update: JudgedUpdate) -> Decision:
    decision, base_version = update.decision, update.champion.policy_version
    if decision.verdict is not Verdict.PROMOTE or champion.policy_version == base_version:
        return decision
    reason = f"the champion is v{champion.policy_version} by now, and it is over v{base_version}"
    return replace(decision, verdict=Verdict.HOLD, reasons=(reason,))


def _record_in_mlflow(run: Run, update: JudgedUpdate, attempt: Attempt, decision: Decision, runs: PersonalRuns) -> None:
    if update.candidate is None or update.report is None:
        return
    entry = CycleRecord(
        cycle=update.version,
        seed=update.seed,
        commit=code_commit(),
        run=run.model_copy(update={"distill": distill_config(run)}),
        snapshot=update.snapshot,
        candidate=update.candidate,
        report=update.report,
        decision=decision,
    )
    runs.record(attempt.owner, attempt.name, entry)
