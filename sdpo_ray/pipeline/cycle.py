"""One cycle of the training loop, composed of five callables:

    snapshot = draw(start)
    candidate = distill(start, snapshot)
    report = evaluate(start, candidate)
    decision = decide(start, candidate, report)
    outcome = release(start, candidate, report, decision)

The result of each stage is written to the cycle's directory before the next stage starts, and a stage whose result
exists is not run again: a job that was killed resumes in the stage where it was. That stage runs again from its
beginning, so every stage must be safe to repeat. An update that the learner refuses ends the cycle with REJECT.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sdpo_ray.errors import LearnerError
from sdpo_ray.io.files import read_json, write_json
from sdpo_ray.records import Candidate, CycleOutcome, CycleStart, Decision, Report, Snapshot, Verdict
from sdpo_ray.telemetry import EventFile

STAGES = ("draw", "distill", "evaluate", "decide", "release")
START_FILE = "start.json"
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The work of one cycle. Each callable is safe to call again after its process was killed."""

    draw: Callable[[CycleStart], Snapshot]
    distill: Callable[[CycleStart, Snapshot], Candidate]
    evaluate: Callable[[CycleStart, Candidate], Report]
    decide: Callable[[CycleStart, Candidate, Report], Decision]
    release: Callable[[CycleStart, Candidate, Report, Decision], CycleOutcome]
    record_failure: Callable[[CycleStart, str], None]
    """Records a cycle without a candidate, with the reason, in place of the stages that are left."""


def run_cycle(
    start: CycleStart,
    stages: Stages,
    directory: Path,
    events: EventFile,
    *,
    data_lock: AbstractContextManager[None] | None = None,
) -> CycleOutcome:
    """Run one cycle, or the stages that an interrupted one has left.

    `data_lock` is held from draw to decide, while users' text is copied between files. It is not held during
    release, which may wait hours for a reviewer.
    """

    def once(stage: str, kind: type[_Result], work: Callable[[], _Result]) -> _Result:
        path = directory / f"{stage}.json"
        if path.exists():
            return read_json(path, kind)
        with events.stage(stage, start.cycle):
            result = work()
            write_json(path, result)
        return result

    try:
        with data_lock or nullcontext():
            snapshot = once("draw", Snapshot, lambda: stages.draw(start))
            candidate = once("distill", Candidate, lambda: stages.distill(start, snapshot))
            report = once("evaluate", Report, lambda: stages.evaluate(start, candidate))
            decision = once("decide", Decision, lambda: stages.decide(start, candidate, report))
    except LearnerError as error:
        reason = f"no candidate: {error}"
        return once("release", CycleOutcome, lambda: _rejected(start, stages, reason))
    return once("release", CycleOutcome, lambda: stages.release(start, candidate, report, decision))


def _rejected(start: CycleStart, stages: Stages, reason: str) -> CycleOutcome:
    stages.record_failure(start, reason)
    return CycleOutcome(
        cycle=start.cycle,
        policy_version=start.policy_version,
        verdict=Verdict.REJECT,
        reasons=(reason,),
        champion_version=start.parent_version,
    )


def start_cycle(directory: Path, make: Callable[[], CycleStart]) -> CycleStart:
    """The start of the cycle in `directory`: read back if an earlier attempt wrote it, else `make()`, written now."""
    path = directory / START_FILE
    if not path.exists():
        write_json(path, make())
    return read_json(path, CycleStart)


def is_started(directory: Path) -> bool:
    return (directory / START_FILE).exists()


def next_cycle(cycles: Path) -> int:
    """Number of the cycle to run or resume: the first one without an outcome."""
    cycle = 1
    while (cycles / f"{cycle:04d}" / "release.json").exists():
        cycle += 1
    return cycle
