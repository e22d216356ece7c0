"""The numbers of a finished run: the record of `summary.json`, and the claims of the demo that it does not support."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from sdpo_ray.config import Run
from sdpo_ray.evaluate.statistics import Estimate
from sdpo_ray.io.files import read_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.pipeline.cycle import STAGES
from sdpo_ray.promote.release import served_release
from sdpo_ray.records import BASE_VERSION, CycleOutcome, Report, Score, Snapshot, Verdict
from sdpo_ray.records.run_events import Curated, StageFinished
from sdpo_ray.simulate.http_clients import TrafficStats
from sdpo_ray.tables.delta_table import Table
from sdpo_ray.telemetry import read_events


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """The final champion against the base."""

    ties_dropped: Estimate
    ties_half: Estimate
    coverage: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedVersion:
    """One candidate: a point of the plot."""

    policy_version: int
    verdict: Verdict
    interactions: int
    """Rows of the table `interactions` when its snapshot was drawn."""
    win_rate: Estimate | None
    retention: Estimate | None
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    total: int
    failed: int
    errors: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """`summary.json`. Made by `summarize`; read by `sdpo_ray.demo.run_plot` and the user."""

    seed: int
    promotions: int
    refusals: int
    refusal_reasons: tuple[str, ...]
    holds: int
    champion_version: int
    win_rate: WinRate | None
    retention: Estimate | None
    evaluated: tuple[EvaluatedVersion, ...]
    requests: Requests
    conversations: int
    interactions: int
    refused: dict[str, int]
    """Turns, pairs and comments that became no interaction while the training loop curated, by reason."""
    max_versions_per_response: int
    turns_receipted: int
    turns_stored: int
    correction_to_served_s: dict[str, float]
    """By promoted version: from the newest interaction of its snapshot to its first response."""
    cycle_s: dict[str, float]
    """By cycle: draw to release, without curation."""
    stage_s: dict[str, float]
    """Median seconds of each stage."""
    total_s: dict[str, float]


def summarize(run: Run, traffic: TrafficStats, seconds: dict[str, float]) -> Summary:
    """The summary of the run's directory; `traffic` comes from the simulated users, `seconds` from the demo."""
    layout = run.layout
    outcomes = list(_outcomes(layout))
    rejected = [outcome for outcome in outcomes if outcome.verdict is Verdict.REJECT]
    champion = served_release(layout)
    version = champion.policy_version if champion is not None else BASE_VERSION
    report = _report(layout, version)
    turns = Table.turns(layout).read(["version_spans"])
    by_stage, by_cycle = _seconds(layout)
    return Summary(
        seed=run.seed,
        promotions=sum(outcome.verdict is Verdict.PROMOTE for outcome in outcomes),
        refusals=len(rejected),
        refusal_reasons=tuple(reason for outcome in rejected for reason in outcome.reasons),
        holds=sum(outcome.verdict is Verdict.HOLD for outcome in outcomes),
        champion_version=version,
        win_rate=_win_rate(report),
        retention=_estimate(report, "retention"),
        evaluated=tuple(_evaluated(layout, outcome) for outcome in outcomes),
        requests=Requests(total=traffic.requests, failed=traffic.failed, errors=traffic.errors),
        conversations=traffic.conversations,
        interactions=Table.interactions(layout).num_rows,
        refused=_refused(layout),
        max_versions_per_response=max((len(spans) for spans in turns["version_spans"].to_pylist()), default=0),
        turns_receipted=traffic.receipts,
        turns_stored=turns.num_rows,
        correction_to_served_s=_latencies(layout, outcomes, traffic),
        cycle_s=by_cycle,
        stage_s=by_stage,
        total_s=seconds,
    )


def failures(summary: Summary) -> list[str]:
    """The claims of the demo that the run does not support, each with its number; empty if it supports all."""
    win = summary.win_rate.ties_dropped if summary.win_rate is not None else None
    kept = summary.retention
    checks = {
        f"at least 3 promotions ({summary.promotions})": summary.promotions >= 3,
        f"at least 1 refusal ({summary.refusals})": summary.refusals >= 1,
        "refusals give numbers": all(any(c.isdigit() for c in why) for why in summary.refusal_reasons),
        f"win rate with ties dropped >= 0.90 ({win})": win is not None and win.value >= 0.90,
        f"right answers >= 0.95 ({kept})": kept is not None and kept.value >= 0.95 and kept.n >= 128,
        f"no failed request ({summary.requests.errors})": summary.requests.failed == 0,
        f"one version a response ({summary.max_versions_per_response})": summary.max_versions_per_response == 1,
        f"every receipted turn stored ({summary.turns_receipted} receipts, {summary.turns_stored} turns)": (
            summary.turns_receipted == summary.turns_stored > 0
        ),
    }
    return [claim for claim, holds in checks.items() if not holds]


def _outcomes(layout: Layout) -> Iterator[CycleOutcome]:
    for path in sorted((layout.root / "cycles").glob("*/release.json")):
        yield read_json(path, CycleOutcome)


def _evaluated(layout: Layout, outcome: CycleOutcome) -> EvaluatedVersion:
    report = _report(layout, outcome.policy_version)
    curated = [event for event in _curated(layout) if event.cycle <= outcome.cycle]
    return EvaluatedVersion(
        policy_version=outcome.policy_version,
        verdict=outcome.verdict,
        interactions=curated[-1].interactions if curated else 0,
        win_rate=_estimate(report, "win_rate.vs_base.ties_dropped"),
        retention=_estimate(report, "retention"),
        reasons=outcome.reasons,
    )


def _report(layout: Layout, policy_version: int) -> Report | None:
    path = layout.evaluation(policy_version) / "report.json"
    return read_json(path, Report) if path.exists() else None


def _estimate(report: Report | None, name: str) -> Estimate | None:
    score: Score | None = report.score(name) if report is not None else None
    return Estimate(value=score.value, low=score.low, high=score.high, n=score.n) if score is not None else None


def _win_rate(report: Report | None) -> WinRate | None:
    found = {rule: _estimate(report, f"win_rate.vs_base.{rule}") for rule in ("ties_dropped", "ties_half", "coverage")}
    dropped, half, coverage = found["ties_dropped"], found["ties_half"], found["coverage"]
    if dropped is None or half is None or coverage is None:
        return None
    return WinRate(ties_dropped=dropped, ties_half=half, coverage=coverage)


def _curated(layout: Layout) -> list[Curated]:
    return [event for event in read_events(layout.events) if isinstance(event, Curated)]


def _refused(layout: Layout) -> dict[str, int]:
    """The last counts of each cycle, added up."""
    last = {event.cycle: event.refused for event in _curated(layout)}
    return dict(sum((Counter(counts) for counts in last.values()), Counter[str]()))


def _latencies(layout: Layout, outcomes: list[CycleOutcome], traffic: TrafficStats) -> dict[str, float]:
    seconds = {}
    for outcome in outcomes:
        first = traffic.first_seen_s.get(str(outcome.policy_version))
        if outcome.verdict is Verdict.PROMOTE and first is not None:
            snapshot = read_json(layout.snapshot(outcome.cycle) / "snapshot.json", Snapshot)
            seconds[f"v{outcome.policy_version}"] = round(first - snapshot.last_interaction_at_s, 1)
    return seconds


def _seconds(layout: Layout) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds by stage, and seconds by cycle without curation."""
    by_stage: dict[str, list[float]] = defaultdict(list)
    by_cycle: dict[str, float] = defaultdict(float)
    for event in read_events(layout.events):
        if isinstance(event, StageFinished):
            by_stage[event.stage].append(event.seconds)
            if event.stage in STAGES:
                by_cycle[str(event.cycle)] += event.seconds
    return {stage: round(statistics.median(took), 2) for stage, took in by_stage.items()}, dict(by_cycle)
