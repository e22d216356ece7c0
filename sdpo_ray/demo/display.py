"""Where the demo shows what happens: a dashboard on a terminal, else plain lines."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.live import Live

from sdpo_ray.config import Run
from sdpo_ray.demo.dashboard import Dashboard
from sdpo_ray.demo.event_lines import EventLines
from sdpo_ray.records.run_events import RunEvent
from sdpo_ray.simulate.http_clients import TrafficStats


class Display(Protocol):
    def show_step(self, step: str) -> None:
        """Show a step of the demo itself, such as "starting Ray"."""

    def update(self, new_events: Sequence[RunEvent], traffic: TrafficStats) -> None:
        """Take the run's events since the last call, and the traffic so far."""


@contextmanager
def display_on(console: Console, run: Run) -> Iterator[Display]:
    """A display that lasts as long as the block."""
    if not console.is_terminal:
        yield EventLines(console)
        return
    dashboard = Dashboard(run)
    with Live(dashboard, console=console, refresh_per_second=4):
        yield dashboard
