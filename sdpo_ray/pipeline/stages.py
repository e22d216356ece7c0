"""The five stages of a cycle, bound to one run: what `sdpo_ray.pipeline.cycle` calls."""

import time
from functools import partial
from pathlib import Path

from sdpo_ray.config import Run
from sdpo_ray.curate.pipeline import Curator
from sdpo_ray.curate.snapshot import draw_snapshot
from sdpo_ray.distill.attribution.relevance import read_relevance
from sdpo_ray.distill.train.launch import distill
from sdpo_ray.evaluate.discovery import scores_of
from sdpo_ray.io.code_version import code_commit
from sdpo_ray.io.files import read_json
from sdpo_ray.pipeline.canary_runner import CanaryRunner
from sdpo_ray.pipeline.curation import last_batch
from sdpo_ray.pipeline.cycle import Stages
from sdpo_ray.pipeline.evaluation import Evaluation
from sdpo_ray.pipeline.promotion import Promotion
from sdpo_ray.promote import gate
from sdpo_ray.promote.registry import Registry
from sdpo_ray.promote.run_log import CycleRecord
from sdpo_ray.records import Candidate, CycleOutcome, CycleStart, Decision, Release, Report, Snapshot, Verdict
from sdpo_ray.records.run_events import StageProgress
from sdpo_ray.telemetry import EventFile

_PROGRESS_EVERY = 16


class Pipeline:
    """The parts that one run's stages need. `stages` is what a cycle runs."""

    def __init__(self, run: Run, curator: Curator, registry: Registry, events: EventFile) -> None:
        self._run = run
        self._layout = run.layout
        self._curator = curator
        self._registry = registry
        self._events = events
        self._evaluation = Evaluation(run, events)
        self.promotion = Promotion(run, registry, events)
        self.canary_runner = CanaryRunner(run, curator, registry, events, self.promotion.champion)

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

    def _draw(self, start: CycleStart) -> Snapshot:
        return draw_snapshot(
            self._curator.interactions,
            self._layout.snapshot(start.cycle),
            champion_version=start.parent_version,
            seed=start.seed,
            now_s=time.time(),
            last_batch=last_batch(self._layout, start.cycle),
            config=self._run.curate,
        )

    def _distill(self, start: CycleStart, snapshot: Snapshot) -> Candidate:
        return distill(
            snapshot=snapshot,
            parent=read_json(self._layout.release(start.parent_version), Release),
            policy_version=start.policy_version,
            out=self._layout.candidate(start.policy_version),
            config=self._run.distill,
            max_model_len=self._run.policy.max_model_len,
            seed=start.seed,
            base=self._run.base,
            on_step=partial(self._progress, start.cycle, "distill"),
        )

    def _evaluate(self, start: CycleStart, candidate: Candidate) -> Report:
        on_progress = partial(self._progress, start.cycle, "evaluate")
        return self._evaluation.evaluate(start.cycle, candidate, self.promotion.champion(), on_progress)

    def _decide(self, start: CycleStart, candidate: Candidate, report: Report) -> Decision:
        decision = gate.decide(report, self._run.promote, scores_of(self._evaluation.probes))
        self._registry.record_cycle(
            CycleRecord(
                cycle=start.cycle,
                seed=start.seed,
                commit=code_commit(),
                run=self._run,
                snapshot=read_json(self._layout.snapshot(start.cycle) / "snapshot.json", Snapshot),
                candidate=candidate,
                report=report,
                decision=decision,
                relevance=read_relevance(Path(candidate.path)),
            )
        )
        return decision

    def _release(self, start: CycleStart, candidate: Candidate, report: Report, decision: Decision) -> CycleOutcome:
        """Review, canary and promotion, each only if everything before it said PROMOTE."""
        verdict, reasons = decision.verdict, decision.reasons
        if verdict is Verdict.PROMOTE and self._run.promote.require_review:
            verdict, reasons = self.promotion.await_review(start.cycle, decision)
        if verdict is Verdict.PROMOTE:
            verdict, reasons = self.canary_runner.judge(start.cycle, candidate, report, reasons)
        if verdict is Verdict.PROMOTE:
            verdict, reasons = self.promotion.promote(candidate, report, reasons)
        self.canary_runner.end()
        if verdict is not decision.verdict:
            self._registry.tag(candidate.policy_version, "status", "refused" if verdict is Verdict.REJECT else "held")
            self._registry.tag(candidate.policy_version, "outcome", f"{verdict}: {'; '.join(reasons)}")
        return CycleOutcome(
            cycle=start.cycle,
            policy_version=candidate.policy_version,
            verdict=verdict,
            reasons=reasons,
            champion_version=self.promotion.champion().policy_version,
        )

    def _progress(self, cycle: int, stage: str, done: int, total: int) -> None:
        if done % _PROGRESS_EVERY == 0 or done == total or total < 4 * _PROGRESS_EVERY:
            self._events.write(StageProgress(cycle=cycle, stage=stage, done=done, total=total))
