"""One update of a personal policy: draw, learn, evaluate, decide, publish.

It needs no turn of the training loop's. The draw, and the end from the verdict to the pointer, are each done while no erasure
runs; what was erased in between is found at the end, and then nothing comes of it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdpo_ray.config import Run
from sdpo_ray.curate.snapshot import HELD_OUT
from sdpo_ray.distill.train.launch import distill
from sdpo_ray.distill.train.update_spec import read_gains
from sdpo_ray.errors import DataError, LearnerError, NotReady, ReleaseError, SwapError
from sdpo_ray.evaluate.discovery import find_probes, scores_of
from sdpo_ray.evaluate.probe import ProbeInput, Suite
from sdpo_ray.evaluate.questions import load_questions
from sdpo_ray.evaluate.runner import EvalRunner
from sdpo_ray.evaluate.suite import run_suite
from sdpo_ray.io.code_version import code_commit
from sdpo_ray.io.files import is_ready, read_json
from sdpo_ray.io.locks import file_lock
from sdpo_ray.io.paths import Layout
from sdpo_ray.personal import store
from sdpo_ray.personal.config import distill_config, require_adapters
from sdpo_ray.personal.draw import EligibleInteractions, draw_personal
from sdpo_ray.personal.mlflow_runs import PersonalRuns
from sdpo_ray.personal.owners import Owner, owners_due
from sdpo_ray.personal.store import Attempt
from sdpo_ray.promote import gate
from sdpo_ray.promote.registry import Registry
from sdpo_ray.promote.release import confirm, served_release
from sdpo_ray.promote.run_log import CycleRecord
from sdpo_ray.records import BASE_VERSION, Candidate, Decision, Release, Report, Snapshot, Verdict
from sdpo_ray.records.run_events import PersonalUpdateFinished
from sdpo_ray.tables.arrow_schemas import read_erased
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.telemetry import EventFile


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressCallbacks:
    """Who hears how an update gets on."""

    says: Callable[[str], None]
    steps: Callable[[int, int], None]
    """Done, and how many there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """An attempt before it is written down."""

    decision: Decision
    candidate: Candidate | None = None
    report: Report | None = None


class PersonalTrainer:
    """Makes personal policies for one run. One at a time, whoever asks: `learning`."""

    def __init__(self, run: Run, heard: ProgressCallbacks) -> None:
        """Raises ConfigError where the run's engines serve no adapters over whole weights."""
        require_adapters(run)
        self._run = run
        self._heard = heard
        self._layout = run.layout
        self._table = Table.interactions(self._layout)
        self._questions = load_questions(run)
        self._probes = find_probes(Suite.PERSONAL, run.promote)
        self._evaluation = EvalRunner(run, self._questions.prompts, confirm=confirm)
        self._config = distill_config(run)

    def crowd(self) -> EligibleInteractions:
        """Everybody who may be learned from now. Raises ReleaseError before anything is served."""
        return EligibleInteractions(
            self._table,
            champion_version=self.champion().policy_version,
            now_s=time.time(),
            curate=self._run.curate,
            personal=self._run.personal,
        )

    def owners_due(self) -> list[Owner]:
        """Whom there is something to learn for now."""
        return list(owners_due(self._layout, self.crowd(), self._run.personal, self.champion().policy_version))

    def champion(self) -> Release:
        release = served_release(self._layout)
        if release is None:
            raise ReleaseError(f"nothing is served from {self._layout.root} yet: deploy serve/config.yaml first")
        return release

    def learn(self, owner: Owner) -> Attempt:
        """One attempt, whatever comes of it. Raises DataError where the owner has not said enough."""
        self._heard.says("waiting for another personal update of this run")
        with file_lock(self._layout.personal / "learning"):
            return self._learn(owner)

    def _learn(self, owner: Owner) -> Attempt:
        layout, champion, least = self._layout, self.champion(), self._run.personal.min_interactions
        store.sweep(layout, owner.digest)
        version = store.next_version(layout, owner.digest)
        directory = layout.personal_version(owner.digest, version)
        seed = self._run.seed * 1_000_003 + version
        self._heard.says("drawing")
        with file_lock(layout.personal):
            if (found := self.crowd().count(owner.tenant, owner.users)) < least:
                raise DataError(
                    f"{found} interactions to learn from: personal.min_interactions is {least}, and what was said "
                    "counts once the training loop or jobs/curate.py has paired it"
                )
            snapshot = draw_personal(
                self._table,
                directory / store.SNAPSHOT,
                tenant=owner.tenant,
                users=owner.users,
                champion_version=champion.policy_version,
                seed=seed,
                now_s=time.time(),
                curate=self._run.curate,
                personal=self._run.personal,
            )
        judged = self._judged(owner, version, champion, snapshot, seed)
        self._heard.says("asking MLflow")
        runs = runs_of(self._run, layout)
        with file_lock(layout.personal):
            return self._conclude(owner, version, champion, snapshot, judged, runs, seed)

    def _judged(self, owner: Owner, version: int, champion: Release, snapshot: Snapshot, seed: int) -> _Judged:
        try:
            candidate = self._trained(owner, version, champion, snapshot, seed)
            report = self._evaluated(owner, champion, candidate)
        except (LearnerError, SwapError) as error:
            reasons = (f"no candidate: {error}",)
            return _Judged(decision=Decision(policy_version=version, verdict=Verdict.REJECT, reasons=reasons))
        decision = gate.decide_personal(report, self._run.promote, self._run.personal, scores_of(self._probes))
        return _Judged(decision=decision, candidate=candidate, report=report)

    def _trained(self, owner: Owner, version: int, champion: Release, snapshot: Snapshot, seed: int) -> Candidate:
        self._heard.says("learning")
        return distill(
            snapshot=snapshot,
            parent=champion,
            policy_version=version,
            out=self._layout.personal_version(owner.digest, version) / store.CANDIDATE,
            config=self._config,
            max_model_len=self._run.policy.max_model_len,
            seed=seed,
            base=Path(champion.path),
            held_out=Path(snapshot.path) / HELD_OUT,
            on_step=self._heard.steps,
        )

    def _evaluated(self, owner: Owner, champion: Release, candidate: Candidate) -> Report:
        self._heard.says("evaluating")
        layout = self._layout
        base = read_json(layout.release(BASE_VERSION), Release)
        number = store.evaluated_as(owner.digest, candidate.policy_version)
        merged = Release(
            policy_version=number,
            path=candidate.path,
            previous_version=None,
            fingerprint=candidate.fingerprint,
            digests=candidate.digests,
        )
        total = len(self._questions.prompts)
        measured = ProbeInput(
            candidate=self._evaluation.answers(
                merged,
                Path(candidate.path) / "answers.json",
                lambda done: self._heard.steps(done, total),
                temporary=True,
            ),
            base=self._evaluation.answers(
                base,
                layout.evaluation(base.policy_version) / "answers.json",
                lambda done: self._heard.steps(done, total),
            ),
            gains=tuple(read_gains(Path(candidate.path))),
            is_right=self._questions.is_right,
            confidence=self._run.evaluate.confidence,
        )
        report = run_suite(
            self._probes,
            measured,
            policy_version=number,
            base_version=base.policy_version,
            champion_version=champion.policy_version,
        )
        return replace(report, policy_version=candidate.policy_version)

    def _conclude(
        self,
        owner: Owner,
        version: int,
        champion: Release,
        snapshot: Snapshot,
        judged: _Judged,
        runs: PersonalRuns,
        seed: int,
    ) -> Attempt:
        """What is written down and served, if anything; no erasure runs meanwhile."""
        layout, decision, policy = self._layout, judged.decision, None
        if not is_ready(Path(snapshot.path)) or read_erased(Path(snapshot.path)):
            store.remove(layout, owner.digest)
            raise NotReady("some of what it learned from was erased meanwhile: nothing is kept of it")
        if decision.verdict is Verdict.PROMOTE and self.champion().policy_version != champion.policy_version:
            moved = f"the champion is v{self.champion().policy_version} by now, and it is over"
            decision = replace(decision, verdict=Verdict.HOLD, reasons=(f"{moved} v{champion.policy_version}",))
        if decision.verdict is Verdict.PROMOTE and judged.candidate is not None:
            policy = store.seal_adapter(layout, owner.digest, judged.candidate)
        attempt = Attempt(
            owner=owner.digest,
            version=version,
            base_version=champion.policy_version,
            snapshot=snapshot,
            verdict=decision.verdict,
            reasons=decision.reasons,
            name=policy.name if policy is not None else "",
            report=judged.report,
            ended_at_s=time.time(),
        )
        if judged.candidate is not None and judged.report is not None:
            entry = CycleRecord(
                cycle=version,
                seed=seed,
                commit=code_commit(),
                run=self._run.model_copy(update={"distill": self._config}),
                snapshot=snapshot,
                candidate=judged.candidate,
                report=judged.report,
                decision=decision,
            )
            runs.record(owner.digest, attempt.name, entry)
        store.conclude(layout, attempt, policy)
        if policy is not None:
            forget_owners(layout, runs, owner.former)
        EventFile(layout.events).write(
            PersonalUpdateFinished(
                owner=owner.digest,
                version=version,
                base_version=champion.policy_version,
                verdict=attempt.verdict,
                reasons=attempt.reasons,
            )
        )
        return attempt


def runs_of(run: Run, layout: Layout) -> PersonalRuns:
    """What MLflow keeps of the run's personal policies."""
    return PersonalRuns(Registry.of(run).tracking, model_name=run.promote.model_name)


def forget_owners(layout: Layout, runs: PersonalRuns, owners: Sequence[str]) -> list[str]:
    """Remove everything of these owners, MLflow's runs included; those of whom there was something."""
    runs.forget(owners)
    return [owner for owner in owners if store.remove(layout, owner)]
