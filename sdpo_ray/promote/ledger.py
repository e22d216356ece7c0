"""What the books say about one cycle: everything needed to make its candidate again, and to judge it.

Plain values and files; `promote.registry` writes them into MLflow.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from sdpo_ray.config import Run, to_json
from sdpo_ray.promote.figures import score_intervals, training_curves
from sdpo_ray.promote.heatmap import write_words
from sdpo_ray.promote.page import write_html
from sdpo_ray.records import Candidate, Decision, Report, Snapshot
from sdpo_ray.storage import write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One cycle, as it is recorded. Made by jobs; read by `promote.registry`."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of a metric's curve."""

    name: str
    value: float
    step: int


def parameters(entry: Entry) -> dict[str, str]:
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
        "num_interactions": len(snapshot.interaction_ids),
    }
    return {name: str(value) for name, value in of_cycle.items()} | dict(_flat(entry.run.model_dump(mode="json")))


def points(entry: Entry) -> Iterator[Point]:
    """Training's curves by optimizer step; refusals, and scores with their intervals, at step 0."""
    for metrics in entry.candidate.steps:
        numbers = asdict(metrics)
        step = numbers.pop("step")
        for name, value in numbers.items():
            yield Point(name=f"train.{name}", value=float(value), step=step)
    for refusal in entry.candidate.refusals:
        yield Point(name=f"refused.{refusal.reason}", value=float(refusal.n), step=0)
    for alteration in entry.candidate.alterations:
        yield Point(name=f"altered.{alteration.reason}", value=float(alteration.n), step=0)
    for score in entry.report.scores:
        for suffix, value in (("", score.value), (".low", score.low), (".high", score.high), (".n", float(score.n))):
            yield Point(name=f"{score.name}{suffix}", value=value, step=0)


def write_files(entry: Entry, directory: Path) -> None:
    """Write `run.json`, the four records, `training.png` and `scores.png` into `directory`.

    Where the candidate shows what a few interactions taught it, there are `signal.html` and `signal.png` too.
    """
    (directory / "run.json").write_text(to_json(entry.run))
    write_json(directory / "snapshot.json", entry.snapshot)
    write_json(directory / "candidate.json", entry.candidate)
    write_json(directory / "report.json", entry.report)
    write_json(directory / "decision.json", entry.decision)
    training_curves(entry.candidate.steps, directory / "training.png")
    score_intervals(entry.report, directory / "scores.png")
    if signals := entry.candidate.signals:
        version = entry.candidate.parent_version
        write_html(signals, directory / "signal.html", title=f"Cycle {entry.cycle}: what users taught v{version}")
        write_words(signals, directory / "signal.png")


def _flat(values: dict[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)
