"""One update of a personal policy: draw, distill, evaluate, decide, publish.

Runs beside the training loop without the data lock. The draw and the publication each hold the lock of
`Layout.personal`, which an erasure holds too; `publish` finds what was erased between them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sdpo_ray.config import Run
from sdpo_ray.curate.snapshot import HELD_OUT
from sdpo_ray.distill.train.launch import distill
from sdpo_ray.errors import DataError, LearnerError, SwapError
from sdpo_ray.evaluate.discovery import scores_of
from sdpo_ray.io.locks import file_lock
from sdpo_ray.personal import store
from sdpo_ray.personal.config import distill_config, require_adapters
from sdpo_ray.personal.draw import EligibleInteractions, draw_personal
from sdpo_ray.personal.evaluation import PersonalEvaluation
from sdpo_ray.personal.mlflow_runs import PersonalRuns
from sdpo_ray.personal.owners import Owner, owners_due
from sdpo_ray.personal.publish import JudgedUpdate, publish
from sdpo_ray.personal.store import Attempt
from sdpo_ray.promote import gate
from sdpo_ray.promote.release import require_served_release
from sdpo_ray.records import Candidate, Decision, Release, Snapshot, Verdict
from sdpo_ray.tables.delta_table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressCallbacks:
    """How an update reports its progress. Made by `jobs.personalize`; called by `PersonalTrainer`."""

    on_step: Callable[[str], None]
    """The step that starts, in words."""
    on_progress: Callable[[int, int], None]
    """Optimizer steps or evaluation prompts: done, and in all."""


class PersonalTrainer:
    """Trains personal policies for one run, one at a time over all processes."""

    def __init__(self, run: Run, callbacks: ProgressCallbacks) -> None:
        """Raises ConfigError if the run's engines could not serve a personal policy."""
        require_adapters(run)
        self._run = run
        self._callbacks = callbacks
        self._layout = run.layout
        self._table = Table.interactions(self._layout)
        self._evaluation = PersonalEvaluation(run)

    def champion(self) -> Release:
        """The shared policy that is served. Raises ReleaseError before the first release."""
        return require_served_release(self._layout)

    def eligible(self) -> EligibleInteractions:
        """All interactions that may be learned from now. Raises as `champion`."""
        return EligibleInteractions(
            self._table,
            champion_version=self.champion().policy_version,
            now_s=time.time(),
            curate=self._run.curate,
            personal=self._run.personal,
        )

    def owners_due(self) -> list[Owner]:
        """Owners with enough new interactions, or with a stale policy. Raises as `champion`."""
        return list(owners_due(self._layout, self.eligible(), self._run.personal, self.champion().policy_version))

    def learn(self, owner: Owner) -> Attempt:
        """Make one attempt, and serve its policy if the gate promotes it.

        Raises DataError if the owner has too few interactions, NotReady if an erasure removed some of them meanwhile.
        """
        self._callbacks.on_step("waiting for another personal update of this run")
        with file_lock(self._layout.personal / "learning"):
            store.sweep(self._layout, owner.digest)
            version = store.next_version(self._layout, owner.digest)
            seed = self._run.seed * 1_000_003 + version
            champion = self.champion()
            snapshot = self._draw(owner, version, champion, seed)
            update = self._judge(owner, version, champion, snapshot, seed)
            self._callbacks.on_step("recording in MLflow")
            runs = PersonalRuns.of(self._run)
            with file_lock(self._layout.personal):
                return publish(self._run, update, runs, champion=self.champion())

    def _draw(self, owner: Owner, version: int, champion: Release, seed: int) -> Snapshot:
        self._callbacks.on_step("drawing")
        least = self._run.personal.min_interactions
        with file_lock(self._layout.personal):
            if (n := self.eligible().count(owner.tenant, owner.users)) < least:
                raise DataError(
                    f"{n} interactions to learn from: personal.min_interactions is {least}, and a turn counts once "
                    "the training loop or jobs/curate.py has paired it"
                )
            return draw_personal(
                self._table,
                self._layout.personal_version(owner.digest, version) / store.SNAPSHOT,
                tenant=owner.tenant,
                users=owner.users,
                champion_version=champion.policy_version,
                seed=seed,
                now_s=time.time(),
                curate=self._run.curate,
                personal=self._run.personal,
            )

    def _judge(self, owner: Owner, version: int, champion: Release, snapshot: Snapshot, seed: int) -> JudgedUpdate:
        """Distill, evaluate and decide. An update that learner or engine refuses is a rejected one."""
        candidate, report = None, None
        try:
            candidate = self._distill(owner, version, champion, snapshot, seed)
            self._callbacks.on_step("evaluating")
            report = self._evaluation.evaluate(owner.digest, candidate, champion, self._callbacks.on_progress)
        except (LearnerError, SwapError) as error:
            candidate = None
            decision = Decision(policy_version=version, verdict=Verdict.REJECT, reasons=(f"no candidate: {error}",))
        else:
            specs = scores_of(self._evaluation.probes)
            decision = gate.decide_personal(report, self._run.promote, self._run.personal, specs)
        return JudgedUpdate(
            owner=owner,
            version=version,
            seed=seed,
            champion=champion,
            snapshot=snapshot,
            decision=decision,
            candidate=candidate,
            report=report,
        )

    def _distill(self, owner: Owner, version: int, champion: Release, snapshot: Snapshot, seed: int) -> Candidate:
        self._callbacks.on_step("learning")
        return distill(
            snapshot=snapshot,
            parent=champion,
            policy_version=version,
            out=self._layout.personal_version(owner.digest, version) / store.CANDIDATE,
            config=distill_config(self._run),
            max_model_len=self._run.policy.max_model_len,
            seed=seed,
            base=Path(champion.path),
            held_out=Path(snapshot.path) / HELD_OUT,
            on_step=self._callbacks.on_progress,
        )
