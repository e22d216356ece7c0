"""Progress of a benchmark on standard error: one line a step, and a bar with the remaining time on a terminal."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Steps:
    """Counts `total` steps of the benchmark `name`. Use it as a context manager, one at a time."""

    def __init__(self, name: str, total: int) -> None:
        self._name = name
        self._total = total
        self._number = 0
        self._began_s = time.monotonic()
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(
            *columns,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(name, total=total)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def done(self, what: str) -> None:
        """Count one step, and print what it measured."""
        self._number += 1
        self._progress.advance(self._task)
        elapsed_s = time.monotonic() - self._began_s
        self._console.print(f"{self._name} {self._number}/{self._total} ({elapsed_s:.0f} s) {what}", markup=False)
