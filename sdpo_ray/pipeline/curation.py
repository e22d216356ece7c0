"""The stage before a cycle: curate live traffic until there are enough new interactions to learn from."""

import time
from collections import Counter
from collections.abc import Callable

import typer

from sdpo_ray.config import Run
from sdpo_ray.curate.pipeline import CurationProgress, Curator
from sdpo_ray.curate.snapshot import count_new
from sdpo_ray.io.files import read_json
from sdpo_ray.io.locks import data_lock
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Release, Snapshot
from sdpo_ray.records.run_events import BacklogChanged, Curated, TablesCompacted
from sdpo_ray.telemetry import EventFile

STAGE = "curate"
POLL_S = 1.0
"""Seconds between two reads of the event log."""


def curate_until_ready(
    run: Run, curator: Curator, champion: Callable[[], Release], events: EventFile, cycle: int
) -> None:
    """Return when `curate.min_new_interactions` are there that the cycle before could not draw."""
    layout, needed = run.layout, run.curate.min_new_interactions
    after = last_batch(layout, cycle)
    refused: Counter[str] = Counter()
    alarm = BacklogAlarm(run, events)
    with events.stage(STAGE, cycle):
        while True:
            with data_lock(layout):
                progress, compacted = curator.advance(), curator.maintain()
            refused += progress.refused
            alarm.check(progress.backlog_bytes, cycle)
            if compacted:
                events.write(TablesCompacted(cycle=cycle, tables=tuple(compacted)))
            ready = count_new(
                curator.interactions,
                after=after,
                champion_version=champion().policy_version,
                now_s=time.time(),
                config=run.curate,
            )
            if progress.turns_ingested or ready >= needed:
                events.write(_curated(cycle, progress, ready, needed, refused))
            if ready >= needed:
                return
            time.sleep(POLL_S)


def last_batch(layout: Layout, cycle: int) -> int:
    """The newest batch of the table `interactions` that the cycle before could draw from; 0 for the first cycle."""
    path = layout.cycle(cycle - 1) / "draw.json"
    return read_json(path, Snapshot).last_batch if path.exists() else 0


class BacklogAlarm:
    """Reports once that the event log grows faster than it is curated, and once that it is below the limit again."""

    def __init__(self, run: Run, events: EventFile) -> None:
        self._limit_mib = run.capture.journal.alarm_mib
        self._events = events
        self._above = False

    def check(self, backlog_bytes: int, cycle: int) -> None:
        backlog_mib = backlog_bytes >> 20
        above = backlog_mib > self._limit_mib
        if above != self._above:
            self._above = above
            self._events.write(BacklogChanged(cycle=cycle, mib=backlog_mib, alarm_mib=self._limit_mib, above=above))
            state = "is above" if above else "is back under"
            typer.echo(f"the event log {state} {self._limit_mib} MiB: {backlog_mib} MiB", err=True)


def _curated(cycle: int, progress: CurationProgress, ready: int, needed: int, refused: Counter[str]) -> Curated:
    return Curated(
        cycle=cycle,
        new_interactions=ready,
        needed=needed,
        turns=progress.turns_total,
        interactions=progress.interactions_total,
        refused=dict(refused),
    )
