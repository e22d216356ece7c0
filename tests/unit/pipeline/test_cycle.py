"""The order of the stages and their resumption, with stages that only count."""

from contextlib import contextmanager
from dataclasses import fields, replace

import pytest

from sdpo_ray.errors import LearnerError
from sdpo_ray.pipeline.cycle import STAGES, Stages, next_cycle, run_cycle, start_cycle
from sdpo_ray.records import Candidate, CycleOutcome, CycleStart, Decision, Fingerprint, Report, Snapshot, Verdict
from sdpo_ray.records.run_events import StageFinished
from sdpo_ray.telemetry import EventFile, read_events

START = CycleStart(cycle=3, policy_version=3, parent_version=1, seed=9)
SNAPSHOT = Snapshot(
    snapshot_id="s", table_version=4, seed=9, rule="r", interaction_ids=("a",), held_out_ids=(), path="p",
    digest="d", last_interaction_at_s=1.0,
)  # fmt: skip
CANDIDATE = Candidate(
    policy_version=3, parent_version=1, path="w", snapshot_id="s", fingerprint=Fingerprint(token_ids=(1,), logprobs=())
)
REPORT = Report(policy_version=3, base_version=0, champion_version=1, confidence=0.95, scores=())
DECISION = Decision(policy_version=3, verdict=Verdict.HOLD, reasons=("no signal 0.5",))
OUTCOME = CycleOutcome(cycle=3, policy_version=3, verdict=Verdict.HOLD, reasons=("no signal 0.5",), champion_version=1)
RESULTS = dict(zip(STAGES, (SNAPSHOT, CANDIDATE, REPORT, DECISION, OUTCOME), strict=True))


class Killed(BaseException):
    """Stands for kill -9 within one process."""


def counting(calls: list[str], *, die_in: str | None = None) -> Stages:
    def stage(name):
        def work(*arguments):
            calls.append(name)
            if name == die_in:
                raise Killed
            return RESULTS[name]

        return work

    return Stages(**{field.name: stage(field.name) for field in fields(Stages)})


def test_a_cycle_runs_every_stage_once_and_in_order(tmp_path):
    calls: list[str] = []
    assert run_cycle(START, counting(calls), tmp_path / "c", EventFile(tmp_path / "events")) == OUTCOME
    assert tuple(calls) == STAGES
    done = [event.stage for event in read_events(tmp_path / "events") if isinstance(event, StageFinished)]
    assert tuple(done) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_a_cycle_killed_in_any_stage_repeats_that_stage_and_no_other(tmp_path, stage):
    calls: list[str] = []
    events = EventFile(tmp_path / "events")
    with pytest.raises(Killed):
        run_cycle(START, counting(calls, die_in=stage), tmp_path / "c", events)
    assert run_cycle(START, counting(calls), tmp_path / "c", events) == OUTCOME
    assert calls == sorted([*STAGES, stage], key=STAGES.index)


def test_a_finished_cycle_is_not_run_again(tmp_path):
    calls: list[str] = []
    events = EventFile(tmp_path / "events")
    run_cycle(START, counting(calls), tmp_path / "c", events)
    run_cycle(START, counting(calls), tmp_path / "c", events)
    assert tuple(calls) == STAGES


def test_an_update_that_the_learner_refuses_is_a_rejected_cycle(tmp_path):
    stages = counting([])

    def refuse(start, snapshot):
        raise LearnerError("gradient norm is nan at step 2")

    recorded: list[tuple[int, str]] = []
    broken = replace(
        stages, distill=refuse, record_failure=lambda start, reason: recorded.append((start.policy_version, reason))
    )
    outcome = run_cycle(START, broken, tmp_path / "c", EventFile(tmp_path / "events"))
    assert (outcome.verdict, outcome.champion_version) == (Verdict.REJECT, 1)
    assert outcome.reasons == ("no candidate: gradient norm is nan at step 2",)
    assert recorded == [(3, outcome.reasons[0])]


def test_a_cycle_begins_once(tmp_path):
    assert start_cycle(tmp_path / "c", lambda: START) == START
    other = CycleStart(cycle=3, policy_version=3, parent_version=2, seed=1)
    assert start_cycle(tmp_path / "c", lambda: other) == START


def test_the_next_cycle_is_the_first_without_an_outcome(tmp_path):
    assert next_cycle(tmp_path) == 1
    for cycle in ("0001", "0002"):
        (tmp_path / cycle).mkdir()
        (tmp_path / cycle / "release.json").write_text("{}")
    (tmp_path / "0003").mkdir()
    (tmp_path / "0003" / "start.json").write_text("{}")
    assert next_cycle(tmp_path) == 3


@pytest.mark.parametrize("stage", [None, "distill"])
def test_the_data_lock_is_held_from_draw_to_decide_and_not_during_release(tmp_path, stage):
    calls: list[str] = []

    @contextmanager
    def data_lock():
        calls.append("begin")
        try:
            yield
        finally:
            calls.append("end")

    def run() -> CycleOutcome:
        stages = counting(calls, die_in=stage)
        return run_cycle(START, stages, tmp_path / "c", EventFile(tmp_path / "events"), data_lock=data_lock())

    if stage is None:
        run()
        assert calls == ["begin", "draw", "distill", "evaluate", "decide", "end", "release"]
    else:
        with pytest.raises(Killed):
            run()
        assert calls == ["begin", "draw", "distill", "end"]
