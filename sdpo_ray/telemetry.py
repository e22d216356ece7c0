"""The run's event file, one JSON line an event, and counters by reason. Neither holds user text."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sdpo_ray.errors import DataError
from sdpo_ray.records.run_events import RunEvent, StageFinished, StageStarted

_DECODER: msgspec.json.Decoder[RunEvent] = msgspec.json.Decoder(RunEvent)


class EventFile:
    """Appends events to a file that other processes read while it grows."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def write(self, event: RunEvent) -> None:
        line = msgspec.json.encode(event)
        with self._path.open("ab") as file:
            file.write(line + b"\n")

    @contextmanager
    def stage(self, name: str, cycle: int) -> Iterator[None]:
        """Write `StageStarted`, and `StageFinished` if the block ends without an exception."""
        self.write(StageStarted(cycle=cycle, stage=name))
        began = time.monotonic()
        yield
        self.write(StageFinished(cycle=cycle, stage=name, seconds=round(time.monotonic() - began, 3)))


class EventReader:
    """Reads an event file as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read_new(self) -> list[RunEvent]:
        """The events since the last call; none if the file does not exist.

        A torn last line is read once its newline is written. Raises DataError for a line that is not a `RunEvent`.
        """
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().split(b"\n")[:-1]
        self._offset += sum(len(line) + 1 for line in lines)
        return [self._decode(line) for line in lines]

    def _decode(self, line: bytes) -> RunEvent:
        try:
            return _DECODER.decode(line)
        except msgspec.DecodeError as error:
            raise DataError(f"{self._path} has a line that is no event: {error}") from error


def read_events(path: Path) -> list[RunEvent]:
    """All events in `path`, as `EventReader.read_new`."""
    return EventReader(path).read_new()


@dataclass(slots=True)
class Counters:
    """Counts by name; a refusal is counted as `<stage>.<reason>`."""

    values: Counter[str]

    @classmethod
    def empty(cls) -> "Counters":
        return cls(Counter())

    def add(self, name: str, n: int = 1) -> None:
        self.values[name] += n
