"""The stages of the training loop, wired for one run: what `sdpo_ray.pipeline.cycle` calls, with every real part behind it."""

import threading
import time
from functools import partial
from pathlib import Path

from sdpo_ray.config import Run
from sdpo_ray.curate.pipeline import Curator
from sdpo_ray.curate.snapshot import draw_snapshot
from sdpo_ray.distill.attribution.relevance import read_relevance
from sdpo_ray.distill.train.launch import distill
from sdpo_ray.errors import ReleaseError, SwapError
from sdpo_ray.evaluate.client import Answers
from sdpo_ray.evaluate.discovery import find_probes, scores_of
from sdpo_ray.evaluate.judge import load_judge
from sdpo_ray.evaluate.probe import ProbeInput, Suite
from sdpo_ray.evaluate.questions import load_questions
from sdpo_ray.evaluate.runner import EvalRunner
from sdpo_ray.evaluate.suite import run_suite
from sdpo_ray.io.code_version import code_commit
from sdpo_ray.io.files import read_json, write_json
from sdpo_ray.pipeline.canary_runner import CanaryRunner
from sdpo_ray.pipeline.curation import last_batch
from sdpo_ray.pipeline.cycle import Stages
from sdpo_ray.promote import gate
from sdpo_ray.promote.alias_sync import AliasAction, sync_alias
from sdpo_ray.promote.registry import Registry
from sdpo_ray.promote.release import confirm, point_at, rollback, served_release
from sdpo_ray.promote.run_log import CycleRecord
from sdpo_ray.records import (
    BASE_VERSION,
    Candidate,
    CycleOutcome,
    CycleStart,
    Decision,
    Release,
    Report,
    Snapshot,
    Verdict,
    cycle_of_version,
)
from sdpo_ray.records.run_events import (
    AliasFollowed,
    AliasRestored,
    ProbeFailed,
    ReviewAwaited,
    Reviewed,
    StageProgress,
)
from sdpo_ray.telemetry import Counters, EventFile

_PROGRESS_EVERY = 16


class Pipeline:
    """Everything one run's stages need. `stages` is what a cycle runs."""

    def __init__(self, run: Run, curator: Curator, registry: Registry, events: EventFile) -> None:
        self._run = run
        self._layout = run.layout
        self._curator = curator
        self._registry = registry
        self._events = events
        self._url = run.serve.url
        self._questions = load_questions(run)
        self._judge = load_judge(run)
        self._probes = find_probes(Suite.SHARED, run.promote)
        self._evaluation = EvalRunner(run, self._questions.prompts, confirm=confirm)
        self.canary_runner = CanaryRunner(run, curator, registry, events, self.champion)
        self._moving = threading.Lock()
        """Held by whoever moves alias and pointer: the release stage, or the thread that follows people."""

    @property
    def stages(self) -> Stages:
        return Stages(
            draw=self._draw,
            distill=self._distill,
            evaluate=self._evaluate,
            decide=self._decide,
            release=self._release,
            record_failure=self._registry.record_failure,
        )

    def champion(self) -> Release:
        """What users are served. Raises ReleaseError before anything is."""
        release = served_release(self._layout)
        if release is None:
            raise ReleaseError(f"nothing is served from {self._layout.root} yet: deploy serve/config.yaml first")
        return release

    def sync_alias(self) -> None:
        """Serve what a person moved the alias `champion` to, where that is something users may meet."""
        with self._moving:
            followed = sync_alias(
                self._layout,
                champion=self._registry.champion_version,
                set_champion=self._registry.set_champion,
                passed=self._passed,
            )
        if followed.action is AliasAction.STAY:
            return
        event = AliasFollowed if followed.action is AliasAction.FOLLOW else AliasRestored
        self._events.write(
            event(alias_version=followed.alias_version, champion_version=followed.release.policy_version)
        )

    def _passed(self, policy_version: int) -> Candidate | None:
        """The candidate of a version that the gate promoted, by our own records: people can edit MLflow's."""
        directory = self._layout.cycle(cycle_of_version(policy_version))
        if not (directory / "decide.json").exists():
            return None
        verdict = read_json(directory / "decide.json", Decision).verdict
        if verdict is not Verdict.PROMOTE or self._registry.review(policy_version) == "rejected":
            return None
        return read_json(directory / "distill.json", Candidate)

    def _draw(self, begun: CycleStart) -> Snapshot:
        return draw_snapshot(
            self._curator.interactions,
            self._layout.snapshot(begun.cycle),
            champion_version=begun.parent_version,
            seed=begun.seed,
            now_s=time.time(),
            last_batch=last_batch(self._layout, begun.cycle),
            config=self._run.curate,
        )

    def _distill(self, begun: CycleStart, snapshot: Snapshot) -> Candidate:
        return distill(
            snapshot=snapshot,
            parent=read_json(self._layout.release(begun.parent_version), Release),
            policy_version=begun.policy_version,
            out=self._layout.candidate(begun.policy_version),
            config=self._run.distill,
            max_model_len=self._run.policy.max_model_len,
            seed=begun.seed,
            base=self._run.base,
            on_step=partial(self._progress, begun.cycle, "distill"),
        )

    def _evaluate(self, begun: CycleStart, candidate: Candidate) -> Report:
        champion = self.champion()
        base = read_json(self._layout.release(BASE_VERSION), Release)
        counters = Counters.empty()
        measured = ProbeInput(
            candidate=self._answers(begun.cycle, candidate),
            base=self._answers(begun.cycle, base),
            champion=self._answers(begun.cycle, champion),
            judge=self._judge,
            is_right=self._questions.is_right,
            confidence=self._run.evaluate.confidence,
        )
        report = run_suite(
            self._probes,
            measured,
            policy_version=candidate.policy_version,
            base_version=base.policy_version,
            champion_version=champion.policy_version,
            counters=counters,
        )
        for name, n in counters.values.items():
            self._events.write(ProbeFailed(cycle=begun.cycle, counter=name, n=n))
        write_json(self._layout.evaluation(candidate.policy_version) / "report.json", report)
        return report

    def _answers(self, cycle: int, policy: Candidate | Release) -> Answers:
        """A policy's answers to the evaluation; asked for once."""
        evaluated = Release(
            policy_version=policy.policy_version,
            path=policy.path,
            previous_version=None,
            fingerprint=policy.fingerprint,
            digests=policy.digests,
        )
        total = len(self._questions.prompts)
        return self._evaluation.answers(
            evaluated,
            self._layout.evaluation(policy.policy_version) / "answers.json",
            lambda done: self._progress(cycle, "evaluate", done, total),
        )

    def _decide(self, begun: CycleStart, candidate: Candidate, report: Report) -> Decision:
        decision = gate.decide(report, self._run.promote, scores_of(self._probes))
        self._registry.record_cycle(
            CycleRecord(
                cycle=begun.cycle,
                seed=begun.seed,
                commit=code_commit(),
                run=self._run,
                snapshot=read_json(self._layout.snapshot(begun.cycle) / "snapshot.json", Snapshot),
                candidate=candidate,
                report=report,
                decision=decision,
                relevance=read_relevance(Path(candidate.path)),
            )
        )
        return decision

    def _release(self, begun: CycleStart, candidate: Candidate, report: Report, decision: Decision) -> CycleOutcome:
        verdict, reasons = decision.verdict, decision.reasons
        if verdict is Verdict.PROMOTE and self._run.promote.require_review:
            verdict, reasons = self._reviewed(begun.cycle, decision)
        if verdict is Verdict.PROMOTE:
            verdict, reasons = self.canary_runner.judge(begun.cycle, candidate, report, reasons)
        if verdict is Verdict.PROMOTE:
            verdict, reasons = self._promote(candidate, report, reasons)
        self.canary_runner.end()
        if verdict is not decision.verdict:
            self._registry.tag(candidate.policy_version, "status", "refused" if verdict is Verdict.REJECT else "held")
            self._registry.tag(candidate.policy_version, "outcome", f"{verdict}: {'; '.join(reasons)}")
        return CycleOutcome(
            cycle=begun.cycle,
            policy_version=candidate.policy_version,
            verdict=verdict,
            reasons=reasons,
            champion_version=self.champion().policy_version,
        )

    def _reviewed(self, cycle: int, decision: Decision) -> tuple[Verdict, tuple[str, ...]]:
        """Wait for a person to tag the model version `review=approved` or `review=rejected` in MLflow."""
        self._events.write(ReviewAwaited(cycle=cycle, policy_version=decision.policy_version))
        while (review := self._registry.review(decision.policy_version)) is None:
            time.sleep(self._run.promote.poll_s)
        self._events.write(Reviewed(cycle=cycle, policy_version=decision.policy_version, review=review))
        if review == "approved":
            return Verdict.PROMOTE, decision.reasons
        return Verdict.REJECT, (f"v{decision.policy_version} was rejected in review",)

    def _promote(
        self, candidate: Candidate, report: Report, reasons: tuple[str, ...]
    ) -> tuple[Verdict, tuple[str, ...]]:
        """Move alias and pointer, and wait until users are served the candidate; undone when an engine refuses it."""
        with self._moving:
            champion = self.champion()
            if champion.policy_version not in (report.champion_version, candidate.policy_version):
                moved = f"the champion became v{champion.policy_version} after the evaluation"
                return Verdict.HOLD, (f"{moved} against v{report.champion_version}",)
            self._registry.set_champion(candidate.policy_version)
            release = point_at(self._layout, candidate)
            try:
                confirm(
                    self._url,
                    candidate.policy_version,
                    timeout_s=self._run.promote.confirm_timeout_s,
                    answers=self._run.serve.num_replicas,
                )
            except SwapError as error:
                back = release.previous_version if release.previous_version is not None else BASE_VERSION
                self._registry.set_champion(back)
                rollback(self._layout, back)
                return Verdict.REJECT, (str(error),)
        return Verdict.PROMOTE, reasons

    def _progress(self, cycle: int, stage: str, done: int, total: int) -> None:
        if done % _PROGRESS_EVERY == 0 or done == total or total < 4 * _PROGRESS_EVERY:
            self._events.write(StageProgress(cycle=cycle, stage=stage, done=done, total=total))
