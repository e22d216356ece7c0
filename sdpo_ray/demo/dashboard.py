"""One screen that shows the training loop turning: stage, interactions, version, win rate, requests and failures."""

import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sdpo_ray.config import Run
from sdpo_ray.io.files import read_json
from sdpo_ray.records import Report
from sdpo_ray.simulate.http_clients import TrafficStats
from sdpo_ray.telemetry import Event

_COLOURS = {"PROMOTE": "green", "HOLD": "yellow", "REJECT": "red"}


class Dashboard:
    """What is known now, as something rich can draw. `served` is the version that users are served."""

    def __init__(self, run: Run) -> None:
        self._layout = run.layout
        self._began = time.monotonic()
        self._stage = "starting"
        self._done, self._total = 0, 1
        self._interactions = 0
        self._turns = 0
        self._traffic = TrafficStats()
        self._outcomes: list[Event] = []
        self.served = 0

    def say(self, stage: str) -> None:
        self._stage, self._done, self._total = stage, 0, 1

    def update(self, events: Sequence[Event], traffic: TrafficStats) -> None:
        """Take in all events so far, and what the users saw."""
        self._traffic = traffic
        self._outcomes = [event for event in events if event.name == "outcome"]
        for event in events:
            facts = event.facts
            if event.name == "stage":
                self.say(f"cycle {event.cycle}: {facts['stage']}")
            elif event.name == "progress":
                self._done, self._total = int(facts["done"] or 0), int(facts["total"] or 1)
            elif event.name == "gathered":
                self._done, self._total = int(facts["new"] or 0), int(facts["needed"] or 1)
                self._interactions, self._turns = int(facts["interactions"] or 0), int(facts["turns"] or 0)
            elif event.name == "canary":
                heard = f"{facts['complaints']} of {facts['reactions']} complain"
                self._stage = f"cycle {event.cycle}: {facts['mode']}, {heard}"
                self._done, self._total = int(facts["judged"] or 0), int(facts["needed"] or 1)
            elif event.name == "outcome":
                self.served = int(facts["champion"] or 0)

    def __rich__(self) -> RenderableType:
        numbers = Table.grid(padding=(0, 2))
        numbers.add_row(
            "stage", Text(self._stage, "bold"), ProgressBar(total=self._total, completed=self._done, width=30)
        )
        numbers.add_row("interactions", str(self._interactions), f"{self._turns} turns stored")
        numbers.add_row("served", f"v{self.served}", self._win_rate(self.served))
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
        for event in self._outcomes:
            version = int(event.facts["policy_version"] or 0)
            verdict = str(event.facts["verdict"])
            why = str(event.facts["reasons"])
            table.add_row(
                str(event.cycle),
                f"v{version}",
                Text(verdict, _COLOURS[verdict]),
                self._win_rate(version),
                self._score(version, "retention"),
                Text(why, overflow="ellipsis", no_wrap=True),
            )
        return table

    def _win_rate(self, version: int) -> str:
        return self._score(version, "win_rate.vs_base.ties_dropped") if version else "the base policy"

    def _score(self, version: int, name: str) -> str:
        path = self._layout.evaluation(version) / "report.json"
        score = read_json(path, Report).score(name) if path.exists() else None
        return f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]" if score else "-"
