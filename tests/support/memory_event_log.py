"""An event log in memory."""

from collections.abc import Mapping
from concurrent.futures import Future

from sdpo_ray.errors import LostEvents
from sdpo_ray.eventlog.protocol import Batch
from sdpo_ray.records import Event


class MemoryLog:
    """An `EventLog` of named lists; `retention` drops unread events, as a broker does."""

    def __init__(self, *, partitions: int = 1) -> None:
        self._events: dict[str, list[Event]] = {f"p{n}": [] for n in range(partitions)}
        self._begins = dict.fromkeys(self._events, 0)
        self.truncated: dict[str, int] = {}

    def put(self, *events: Event, partition: str = "p0") -> None:
        self._begins.setdefault(partition, 0)
        self._events.setdefault(partition, []).extend(events)

    def retention(self, partition: str, events: int) -> None:
        """Drop the oldest events of a partition, read or not."""
        self._begins[partition] += events

    def remove(self, partition: str) -> None:
        """Drop a partition, as another ingest does once it has stored all of it."""
        del self._events[partition]

    @property
    def num_events(self) -> int:
        return sum(len(events) - self._begins[name] for name, events in self._events.items())

    def append(self, event: Event) -> "Future[None]":
        self.put(event)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def partitions(self) -> list[str]:
        return list(self._events)

    def poll(self, after: Mapping[str, int], *, max_events: int, max_bytes: int) -> Batch:
        """See `EventLog.poll`; each event counts as one byte."""
        events: list[Event] = []
        positions: dict[str, int] = {}
        at_end = set(after.keys() - self._events.keys())
        for name, known in self._events.items():
            start = after.get(name, 0)
            if start < self._begins[name]:
                raise LostEvents(f"{name} begins at {self._begins[name]}, not at {start}")
            room = min(max_events, max(max_bytes, 1)) - len(events)
            taken = known[start : start + room]
            if taken:
                events += taken
                positions[name] = start + len(taken)
            if start + len(taken) == len(known):
                at_end.add(name)
        return Batch(events=tuple(events), positions=positions, at_end=frozenset(at_end))

    def truncate(self, upto: Mapping[str, int]) -> None:
        for name, position in upto.items():
            self.truncated[name] = position
            self._begins[name] = max(self._begins.get(name, 0), position)

    def backlog_bytes(self, after: Mapping[str, int]) -> int:
        return self.num_events

    def close(self) -> None:
        pass
