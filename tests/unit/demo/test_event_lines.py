"""The demo's output without a terminal, and the choice between that and the dashboard."""

import io
import os
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import msgspec
import pytest
from rich.console import Console

from sdpo_ray.cli.options import LAPTOP
from sdpo_ray.config import load_run
from sdpo_ray.demo import event_lines
from sdpo_ray.demo.demo import Demo
from sdpo_ray.demo.display import display_on
from sdpo_ray.demo.event_lines import EventLines, describe
from sdpo_ray.records import Verdict
from sdpo_ray.records.run_events import Curated, CycleFinished, RunEvent, StageFinished, StageProgress, StageStarted
from sdpo_ray.simulate.http_clients import TrafficStats

FINISHED = CycleFinished(
    cycle=1,
    policy_version=2,
    verdict=Verdict.PROMOTE,
    reasons=("win rate 0.61", "[retention] 0.98"),
    champion_version=2,
)


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=60)


def printed(on: Console) -> list[str]:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue().splitlines()


def test_each_event_is_one_line_with_the_time_since_the_start_however_long_it_is() -> None:
    on = console()
    lines = EventLines(on)
    now_s = time.time()
    lines.show_step("starting ray")
    events: list[RunEvent] = [
        StageStarted(at_s=now_s + 61, cycle=1, stage="draw"),
        StageFinished(at_s=now_s + 63, cycle=1, stage="draw", seconds=2.04),
        msgspec.structs.replace(FINISHED, at_s=now_s + 125),
    ]
    lines.update(events, TrafficStats())
    assert printed(on) == [
        "  0:00  starting ray",
        "  1:01  cycle 1: draw starts",
        "  1:03  cycle 1: draw took 2.0 s",
        "  2:05  cycle 1: v2 PROMOTE: win rate 0.61; [retention] 0.98; v2 is served",
    ]


def test_progress_is_a_line_every_ten_seconds_and_at_the_end_of_the_stage() -> None:
    on = console()
    lines = EventLines(on)
    now_s = time.time()
    counts = {"needed": 48, "turns": 90, "interactions": 40, "refused": {}}
    curated = [Curated(at_s=now_s + n, cycle=1, new_interactions=n, **counts) for n in range(25)]  # type: ignore[arg-type]
    lines.update(curated, TrafficStats())
    lines.update([Curated(at_s=now_s + 25, cycle=1, new_interactions=48, **counts)], TrafficStats())  # type: ignore[arg-type]
    lines.update([StageProgress(at_s=now_s + 26, cycle=1, stage="distill", done=6, total=6)], TrafficStats())
    assert [line.split("cycle 1: ")[1] for line in printed(on)] == [
        *(f"curated {n} of 48 new interactions (90 turns stored)" for n in (0, 10, 20, 48)),
        "distill 6 of 6",
    ]


def test_traffic_is_a_line_every_half_minute_and_at_once_when_a_request_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    on = console()
    lines = EventLines(on)
    lines.update([], TrafficStats(requests=10))
    assert printed(on) == []
    lines.update([], TrafficStats(requests=11, failed=1))
    now_s = time.time() + 31
    monkeypatch.setattr(event_lines, "time", SimpleNamespace(time=lambda: now_s))
    lines.update([], TrafficStats(requests=20, failed=1))
    assert [line.split("  ")[-1] for line in printed(on)] == ["11 requests, 1 failed", "20 requests, 1 failed"]


def test_every_kind_of_event_has_words() -> None:
    sample: dict[Any, Any] = {int: 1, float: 0.5, str: "x", bool: True, int | None: None, Verdict: Verdict.HOLD}
    sample |= {tuple[str, ...]: ("x",), dict[str, int]: {"x": 1}}
    for kind in get_args(RunEvent):
        event = kind(**{field.name: sample[field.type] for field in msgspec.structs.fields(kind)})
        assert describe(event).startswith("cycle 1: ")


def test_a_terminal_has_the_dashboard_and_anything_else_has_lines(tmp_path: Path) -> None:
    run = load_run(LAPTOP, [f"root={tmp_path}"])
    for terminal in (True, False):
        on = console(terminal=terminal)
        with display_on(on, run) as display:
            display.update([StageStarted(cycle=1, stage="draw"), FINISHED], TrafficStats(requests=7))
        text = "\n".join(printed(on))
        assert ("requests" in text and "sdpo-ray" in text) is terminal
        assert ("cycle 1: draw starts" in text) is not terminal


def test_the_demo_prints_the_events_of_a_job_while_it_runs(tmp_path: Path) -> None:
    on = console()
    demo = Demo(LAPTOP, [f"root={tmp_path}"], on)
    job = textwrap.dedent("""
        import sys
        from pathlib import Path
        from sdpo_ray.records.run_events import CycleFinished
        from sdpo_ray.telemetry import EventFile
        events = EventFile(Path(sys.argv[1]))
        with events.stage("draw", 1):
            pass
        events.write(
            CycleFinished(cycle=1, policy_version=2, verdict="PROMOTE", reasons=("win rate 0.61",), champion_version=2)
        )
    """)
    cluster: Any = SimpleNamespace(environment=dict(os.environ))
    with display_on(on, demo.run) as display:
        demo.follow([sys.executable, "-c", job, str(demo.layout.events)], cluster, display)
    assert [line.split("cycle 1: ")[1] for line in printed(on)] == [
        "draw starts",
        "draw took 0.0 s",
        "v2 PROMOTE: win rate 0.61; v2 is served",
    ]
    assert [outcome.policy_version for outcome in demo.outcomes] == [2]
