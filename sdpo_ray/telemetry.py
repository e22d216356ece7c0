"""What happened, for people and for `summary.json`: one JSON line an event, and counters by reason.

Events and counters never hold user text.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of `events.jsonl`. Made by jobs; read by `jobs.demo` and people."""

    at_s: float
    name: str
    cycle: int
    facts: dict[str, str | int | float | None]


class EventFile:
    """Append events to a file that others read while it grows."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def write(self, name: str, cycle: int, **facts: str | int | float | None) -> None:
        line = msgspec.json.encode(Event(at_s=time.time(), name=name, cycle=cycle, facts=facts))
        with self._path.open("ab") as file:
            file.write(line + b"\n")

    @contextmanager
    def stage(self, name: str, cycle: int) -> Iterator[None]:
        """Write `stage` when the block begins, and `stage_done` with its seconds when it ends well."""
        self.write("stage", cycle, stage=name)
        began = time.monotonic()
        yield
        self.write("stage_done", cycle, stage=name, seconds=round(time.monotonic() - began, 3))


def read_events(path: Path) -> list[Event]:
    """All whole events in `path`; a torn last line is one that was not written yet."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [msgspec.json.decode(line, type=Event) for line in lines]


@dataclass(slots=True)
class Counters:
    """Counts by name; a refusal is counted as `<stage>.<reason>`."""

    values: Counter[str]

    @classmethod
    def empty(cls) -> "Counters":
        return cls(Counter())

    def add(self, name: str, n: int = 1) -> None:
        self.values[name] += n
