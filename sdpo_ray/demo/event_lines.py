"""The demo without a terminal (CI, a log file): one plain line an event, after the seconds since the start."""

import time
from collections.abc import Sequence

from rich.console import Console

from sdpo_ray.records.run_events import (
    AliasFollowed,
    AliasRestored,
    BacklogChanged,
    CanaryProgress,
    Curated,
    CycleFinished,
    PersonalUpdateFinished,
    ProbeFailed,
    ReviewAwaited,
    Reviewed,
    RunEvent,
    ShadowResponse,
    StageFinished,
    StageProgress,
    StageStarted,
    TablesCompacted,
    UserErased,
)
from sdpo_ray.simulate.http_clients import TrafficStats

_PROGRESS_S = 10.0
"""Seconds between two lines about progress within a stage; its last line is always printed."""
_TRAFFIC_S = 30.0


class EventLines:
    """Prints what happens in the demo, line by line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began_s = time.time()
        self._progress_at_s = 0.0
        self._traffic_at_s = self._began_s
        self._failed = 0

    def show_step(self, step: str) -> None:
        self._print(time.time(), step)

    def update(self, new_events: Sequence[RunEvent], traffic: TrafficStats) -> None:
        for event in new_events:
            if self._is_due(event):
                self._print(event.at_s, describe(event))
        now_s = time.time()
        if traffic.failed > self._failed or now_s - self._traffic_at_s >= _TRAFFIC_S:
            self._failed, self._traffic_at_s = traffic.failed, now_s
            self._print(now_s, f"{traffic.requests} requests, {traffic.failed} failed")

    def _is_due(self, event: RunEvent) -> bool:
        match event:
            case StageProgress():
                last = event.done == event.total
            case Curated():
                last = event.new_interactions >= event.needed
            case CanaryProgress():
                last = event.judged >= event.needed
            case _:
                return True
        if not last and event.at_s - self._progress_at_s < _PROGRESS_S:
            return False
        self._progress_at_s = event.at_s
        return True

    def _print(self, at_s: float, text: str) -> None:
        minutes, seconds = divmod(max(0, int(at_s - self._began_s)), 60)
        self._console.print(f"{minutes:3d}:{seconds:02d}  {text}", soft_wrap=True, markup=False, highlight=False)


def describe(event: RunEvent) -> str:
    """An event in words."""
    text = _text(event)
    return f"cycle {event.cycle}: {text}" if event.cycle else text


def _text(event: RunEvent) -> str:
    match event:
        case StageStarted():
            return f"{event.stage} starts"
        case StageProgress():
            return f"{event.stage} {event.done} of {event.total}"
        case StageFinished():
            return f"{event.stage} took {event.seconds:.1f} s"
        case Curated():
            return f"curated {event.new_interactions} of {event.needed} new interactions ({event.turns} turns stored)"
        case TablesCompacted():
            return f"compacted {', '.join(event.tables)}"
        case BacklogChanged():
            return f"the event log holds {event.mib} MiB, the alarm is at {event.alarm_mib} MiB"
        case ProbeFailed():
            return f"a probe failed: {event.counter}"
        case ReviewAwaited():
            return f"v{event.policy_version} waits for a review in MLflow"
        case Reviewed():
            return f"v{event.policy_version} was {event.review} in review"
        case CanaryProgress():
            arms = f"{event.complaints} complaints in {event.reactions} conversations"
            return f"{event.mode} {event.judged} of {event.needed}: {arms}"
        case ShadowResponse():
            return f"shadow response: {event.error or f'{event.tokens} tokens in {event.seconds:.2f} s'}"
        case CycleFinished():
            reasons = "; ".join(event.reasons)
            return f"v{event.policy_version} {event.verdict}: {reasons}; v{event.champion_version} is served"
        case AliasFollowed():
            return f"the alias was moved: v{event.champion_version} is served"
        case AliasRestored():
            return f"the alias was moved back to v{event.champion_version}"
        case PersonalUpdateFinished():
            return f"personal policy of {event.owner[:12]}: {event.verdict}: {'; '.join(event.reasons)}"
        case UserErased():
            return f"a user was erased from {event.snapshots} snapshots and {sum(event.rows.values())} rows"
