"""The training loop: curate until there is enough, then run one cycle; forever, or for some cycles."""

import itertools
import signal
import time
from collections import Counter
from types import FrameType
from typing import TYPE_CHECKING

import typer

from sdpo_ray.config import Run
from sdpo_ray.io.files import read_json
from sdpo_ray.io.locks import data_lock, run_lock
from sdpo_ray.io.paths import Layout
from sdpo_ray.pipeline.background_ingest import ingest_in_background
from sdpo_ray.pipeline.cycle import next_cycle, run_cycle, start_cycle
from sdpo_ray.pipeline.periodic import run_periodically
from sdpo_ray.records import BASE_VERSION, CycleStart
from sdpo_ray.telemetry import EventFile

if TYPE_CHECKING:
    from sdpo_ray.curate.pipeline import Curator
    from sdpo_ray.pipeline.stages import Pipeline

GATHER_S = 1.0
"""Seconds between two looks at the journal."""


def run_training_loop(run: Run, turns: int) -> None:
    """Turn the training loop `turns` times (0: until the process is stopped)."""
    import ray

    from sdpo_ray.curate.pipeline import Curator
    from sdpo_ray.eventlog.factory import open_log
    from sdpo_ray.pipeline.stages import Pipeline
    from sdpo_ray.promote.registry import Registry
    from sdpo_ray.records import Release

    layout = run.layout
    events = EventFile(layout.events)
    with run_lock(layout):
        ray.init(address="auto", ignore_reinit_error=True, log_to_driver=False)
        # Ray's own handler, set a line above, ends the process with status 15.
        signal.signal(signal.SIGTERM, exit_on_sigterm)
        registry = Registry(layout, model_name=run.promote.model_name, tracking_uri=run.promote.tracking_uri)
        log = open_log(layout, run.capture, name="continual")
        curator = Curator(layout, log, curate=run.curate, capture=run.capture)
        pipeline = Pipeline(run, curator, registry, events)
        pipeline.champion()
        pipeline.canary_runner.end_others(next_cycle(layout.root / "cycles"))
        registry.register_base(read_json(layout.release(BASE_VERSION), Release))
        complaint = f"the registry does not answer; asking on every {run.promote.poll_s:g} s"
        # In the background, so that a person's rollback never waits for a stage.
        with run_periodically(pipeline.follow, name="alias", every_s=run.promote.poll_s, complaint=complaint):
            for _ in range(turns) if turns else itertools.count():
                run_next_cycle(run, layout, pipeline, curator, events)


def run_next_cycle(run: Run, layout: Layout, pipeline: "Pipeline", curator: "Curator", events: EventFile) -> None:
    """The next cycle, or what is left of the one that was interrupted."""
    cycle = next_cycle(layout.root / "cycles")
    directory = layout.cycle(cycle)
    if not (directory / "begun.json").exists():
        curate_until_ready(run, layout, pipeline, curator, events, cycle)

    def make() -> CycleStart:
        parent = pipeline.champion().policy_version
        return CycleStart(cycle=cycle, policy_version=cycle, parent_version=parent, seed=run.seed * 1_000_003 + cycle)

    with ingest_in_background(run, layout):
        outcome = run_cycle(
            start_cycle(directory, make), pipeline.stages, directory, events, data_lock=data_lock(layout)
        )
    events.write(
        "outcome",
        cycle,
        policy_version=outcome.policy_version,
        verdict=outcome.verdict.value,
        reasons="; ".join(outcome.reasons),
        champion=outcome.champion_version,
    )
    typer.echo(f"cycle {cycle}: v{outcome.policy_version} {outcome.verdict}: {'; '.join(outcome.reasons)}")


def curate_until_ready(
    run: Run, layout: Layout, pipeline: "Pipeline", curator: "Curator", events: EventFile, cycle: int
) -> None:
    """Curate what arrives until there is enough for a cycle."""
    from sdpo_ray.curate.snapshot import count_new
    from sdpo_ray.pipeline.stages import last_batch

    since = last_batch(layout, cycle)
    refused: Counter[str] = Counter()
    alarm = BacklogAlarm(run, events)
    with events.stage("gather", cycle):
        while True:
            with data_lock(layout):
                progress, compacted = curator.advance(), curator.maintain()
            refused += progress.refused
            alarm.look(progress.backlog_bytes, cycle)
            if compacted:
                events.write("compacted", cycle, tables=", ".join(compacted))
            ready = count_new(
                curator.interactions,
                after=since,
                champion_version=pipeline.champion().policy_version,
                now_s=time.time(),
                config=run.curate,
            )
            if progress.turns_shipped or ready >= run.curate.min_new_interactions:
                events.write(
                    "gathered",
                    cycle,
                    new=ready,
                    needed=run.curate.min_new_interactions,
                    turns=progress.turns_total,
                    interactions=progress.interactions_total,
                    **{f"refused.{reason}": n for reason, n in refused.items()},
                )
            if ready >= run.curate.min_new_interactions:
                return
            time.sleep(GATHER_S)


class BacklogAlarm:
    """Says once when the event log piles up faster than it is curated, and once when it is worked off."""

    def __init__(self, run: Run, events: EventFile) -> None:
        self._limit_mib = run.capture.journal.alarm_mib
        self._events = events
        self._raised = False

    def look(self, backlog_bytes: int, cycle: int) -> None:
        backlog_mib = backlog_bytes >> 20
        raised = backlog_mib > self._limit_mib
        if raised != self._raised:
            self._raised = raised
            self._events.write("backlog", cycle, mib=backlog_mib, alarm_mib=self._limit_mib, raised=int(raised))
            words = "is above" if raised else "is back under"
            typer.echo(f"the event log {words} {self._limit_mib} MiB: {backlog_mib} MiB", err=True)


def exit_on_sigterm(signum: int, frame: FrameType | None) -> None:
    """Leave at once: whatever is half-done is done again, and nothing is done twice."""
    typer.echo("stopped; the next start goes on where this one was")
    raise SystemExit(0)
