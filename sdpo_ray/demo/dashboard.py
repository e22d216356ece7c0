"""The demo on a terminal: stage, interactions, served version, win rate, requests and failures, drawn by rich."""

import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sdpo_ray.config import Run
from sdpo_ray.io.files import read_json
from sdpo_ray.records import BASE_VERSION, Report, Verdict
from sdpo_ray.records.run_events import CanaryProgress, Curated, CycleFinished, RunEvent, StageProgress, StageStarted
from sdpo_ray.simulate.http_clients import TrafficStats

_COLOURS = {Verdict.PROMOTE: "green", Verdict.HOLD: "yellow", Verdict.REJECT: "red"}


class Dashboard:
    """The state of the demo as a rich renderable."""

    def __init__(self, run: Run) -> None:
        self._layout = run.layout
        self._began = time.monotonic()
        self._stage = "starting"
        self._done, self._total = 0, 1
        self._interactions = 0
        self._turns = 0
        self._traffic = TrafficStats()
        self._outcomes: list[CycleFinished] = []
        self._served = BASE_VERSION

    def show_step(self, step: str) -> None:
        self._stage, self._done, self._total = step, 0, 1

    def update(self, new_events: Sequence[RunEvent], traffic: TrafficStats) -> None:
        self._traffic = traffic
        for event in new_events:
            match event:
                case StageStarted():
                    self.show_step(f"cycle {event.cycle}: {event.stage}")
                case StageProgress():
                    self._done, self._total = event.done, event.total
                case Curated():
                    self._done, self._total = event.new_interactions, event.needed
                    self._interactions, self._turns = event.interactions, event.turns
                case CanaryProgress():
                    complaints = f"{event.complaints} of {event.reactions} complain"
                    self._stage = f"cycle {event.cycle}: {event.mode}, {complaints}"
                    self._done, self._total = event.judged, event.needed
                case CycleFinished():
                    self._outcomes.append(event)
                    self._served = event.champion_version

    def __rich__(self) -> RenderableType:
        numbers = Table.grid(padding=(0, 2))
        numbers.add_row(
            "stage", Text(self._stage, "bold"), ProgressBar(total=self._total, completed=self._done, width=30)
        )
        numbers.add_row("interactions", str(self._interactions), f"{self._turns} turns stored")
        numbers.add_row("served", f"v{self._served}", self._win_rate(self._served))
        failed = Text(f"{self._traffic.failed} failed", "red bold" if self._traffic.failed else "green")
        numbers.add_row("requests", str(self._traffic.requests), failed)
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        return Panel(
            Group(numbers, "", self._history()), title=f"sdpo-ray  {minutes}:{seconds:02d}", border_style="blue"
        )

    def _history(self) -> Table:
        table = Table(
            "cycle", "candidate", "verdict", "win rate vs base", "right answers", "why", box=None, expand=True
        )
        for outcome in self._outcomes:
            table.add_row(
                str(outcome.cycle),
                f"v{outcome.policy_version}",
                Text(outcome.verdict, _COLOURS[outcome.verdict]),
                self._win_rate(outcome.policy_version),
                self._score(outcome.policy_version, "retention"),
                Text("; ".join(outcome.reasons), overflow="ellipsis", no_wrap=True),
            )
        return table

    def _win_rate(self, version: int) -> str:
        return "the base policy" if version == BASE_VERSION else self._score(version, "win_rate.vs_base.ties_dropped")

    def _score(self, version: int, name: str) -> str:
        path = self._layout.evaluation(version) / "report.json"
        score = read_json(path, Report).score(name) if path.exists() else None
        return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]" if score else "-"
