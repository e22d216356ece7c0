"""What is recorded of one cycle: all that is needed to train its candidate again, and to judge it.

Plain values and files; `promote.tracking` writes them into MLflow.
"""

import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sdpo_ray.config import Run, keys, to_json
from sdpo_ray.io.files import write_json
from sdpo_ray.records import Candidate, Decision, Relevance, Report, Snapshot
from sdpo_ray.report.token_html import write_html
from sdpo_ray.report.token_png import write_cells
from sdpo_ray.report.training_plots import score_intervals, training_curves

CANDIDATE_FILE = "candidate.json"
ATTRIBUTION_FILES = ("attributions.html", "attributions.png")
"""Files that show the attribution of a few interactions: they hold user text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleRecord:
    """One cycle, as it is recorded. Made by `pipeline.stages` and `personal.trainer`; read by `promote.registry`."""

    cycle: int
    seed: int
    """The cycle's own seed; the run's is in `run`."""
    commit: str
    """Git commit of the code that ran; empty where there is no repository."""
    run: Run
    snapshot: Snapshot
    candidate: Candidate
    report: Report
    decision: Decision
    relevance: tuple[Relevance, ...] = ()
    """Of some interactions of the snapshot; empty where the update measured none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricPoint:
    """One point of a metric's curve. Made by `points`; read by `promote.tracking`."""

    name: str
    value: float
    step: int


def parameters(entry: CycleRecord) -> dict[str, str]:
    """Every parameter of the cycle; those of the run file under their dotted names."""
    snapshot, candidate = entry.snapshot, entry.candidate
    of_cycle = {
        "cycle": entry.cycle,
        "cycle_seed": entry.seed,
        "commit": entry.commit,
        "policy_version": candidate.policy_version,
        "parent_version": candidate.parent_version,
        "snapshot_id": snapshot.snapshot_id,
        "snapshot_rule": snapshot.rule,
        "snapshot_seed": snapshot.seed,
        "snapshot_digest": snapshot.digest,
        "table_version": snapshot.table_version,
        "last_batch": snapshot.last_batch,
        "num_interactions": len(snapshot.interaction_ids),
    }
    run = entry.run.model_dump(mode="json")
    return {name: str(value) for name, value in of_cycle.items()} | {name: str(_value(run, name)) for name in keys()}


def points(entry: CycleRecord) -> Iterator[MetricPoint]:
    """Points of the training curves by optimizer step; counts, and scores with their intervals, at step 0."""
    for metrics in entry.candidate.steps:
        numbers = asdict(metrics)
        step = numbers.pop("step")
        for name, value in numbers.items():
            yield MetricPoint(name=f"train.{name}", value=float(value), step=step)
    for name, counts in (
        ("not_drawn", entry.snapshot.not_drawn),
        ("refused", entry.candidate.refusals),
        ("altered", entry.candidate.alterations),
    ):
        for count in counts:
            yield MetricPoint(name=f"{name}.{count.reason}", value=float(count.n), step=0)
    if relevance := entry.relevance:
        below = sum(each.signal <= each.floor for each in relevance) / len(relevance)
        yield MetricPoint(name="relevance.n", value=float(len(relevance)), step=0)
        yield MetricPoint(name="relevance.below_floor", value=below, step=0)
        yield MetricPoint(name="relevance.median_weight", value=statistics.median(r.weight for r in relevance), step=0)
    for score in entry.report.scores:
        for suffix, value in (("", score.value), (".low", score.low), (".high", score.high), (".n", float(score.n))):
            yield MetricPoint(name=f"{score.name}{suffix}", value=value, step=0)


def write_files(entry: CycleRecord, directory: Path) -> None:
    """Write `run.json`, the four records, `training.png` and `scores.png` into `directory`.

    A candidate with attributions adds `attributions.html` and `attributions.png`, one with measured relevance
    `relevance.json`.
    """
    (directory / "run.json").write_text(to_json(entry.run))
    write_json(directory / "snapshot.json", entry.snapshot)
    write_json(directory / CANDIDATE_FILE, entry.candidate)
    write_json(directory / "report.json", entry.report)
    write_json(directory / "decision.json", entry.decision)
    if entry.relevance:
        write_json(directory / "relevance.json", entry.relevance)
    training_curves(entry.candidate.steps, directory / "training.png")
    score_intervals(entry.report, directory / "scores.png")
    write_attributions(entry.candidate, directory, cycle=entry.cycle)


def write_attributions(candidate: Candidate, directory: Path, *, cycle: int) -> None:
    """Write the two files of `ATTRIBUTION_FILES`; neither where the candidate has no attributions."""
    if attributions := candidate.attributions:
        html, png = (directory / name for name in ATTRIBUTION_FILES)
        write_html(attributions, html, title=f"Cycle {cycle}: what users taught v{candidate.parent_version}")
        write_cells(attributions, png)


def _value(run: dict[str, Any], name: str) -> object:
    """Value of a run file's key by its dotted name; a table whose keys the user names is one value."""
    found: Any = run
    for part in name.split("."):
        found = found[part]
    return found
