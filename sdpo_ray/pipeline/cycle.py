"""One turn of the training loop, from callables.

    snapshot = draw(begun)
    candidate = distill(begun, snapshot)
    report = evaluate(begun, candidate)
    decision = decide(begun, candidate, report)
    outcome = release(begun, candidate, report, decision)

Every result is written to the cycle's directory before the next stage begins, and a stage whose result is
there is not run again: a job killed anywhere goes on where it was. A stage killed half-way runs again, so
each of them must be safe to repeat. An update that the learner itself refuses is a rejected cycle.
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
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The work of one cycle. Each callable is safe to call again after it was killed."""

    draw: Callable[[CycleStart], Snapshot]
    distill: Callable[[CycleStart, Snapshot], Candidate]
    evaluate: Callable[[CycleStart, Candidate], Report]
    decide: Callable[[CycleStart, Candidate, Report], Decision]
    release: Callable[[CycleStart, Candidate, Report, Decision], CycleOutcome]


def run_cycle(
    begun: CycleStart,
    stages: Stages,
    directory: Path,
    events: EventFile,
    *,
    data_lock: AbstractContextManager[None] | None = None,
) -> CycleOutcome:
    """Run one cycle, or what is left of it.

    `data_lock` is held from the draw to the decision, while users' text is on its way from one place to another; the
    release may wait for a person.
    """

    def once(stage: str, kind: type[_Result], work: Callable[[], _Result]) -> _Result:
        path = directory / f"{stage}.json"
        if path.exists():
            return read_json(path, kind)
        with events.stage(stage, begun.cycle):
            result = work()
            write_json(path, result)
        return result

    try:
        with data_lock or nullcontext():
            snapshot = once("draw", Snapshot, lambda: stages.draw(begun))
            candidate = once("distill", Candidate, lambda: stages.distill(begun, snapshot))
            report = once("evaluate", Report, lambda: stages.evaluate(begun, candidate))
            decision = once("decide", Decision, lambda: stages.decide(begun, candidate, report))
    except LearnerError as error:
        refused = CycleOutcome(
            cycle=begun.cycle,
            policy_version=begun.policy_version,
            verdict=Verdict.REJECT,
            reasons=(f"no candidate: {error}",),
            champion_version=begun.parent_version,
        )
        return once("release", CycleOutcome, lambda: refused)
    return once("release", CycleOutcome, lambda: stages.release(begun, candidate, report, decision))


def start_cycle(directory: Path, make: Callable[[], CycleStart]) -> CycleStart:
    """The cycle's fixed beginning: what an earlier attempt wrote, else `make()`, written now."""
    path = directory / "begun.json"
    if not path.exists():
        write_json(path, make())
    return read_json(path, CycleStart)


def next_cycle(cycles: Path) -> int:
    """Number of the cycle to run: the first one without an outcome."""
    cycle = 1
    while (cycles / f"{cycle:04d}" / "release.json").exists():
        cycle += 1
    return cycle
