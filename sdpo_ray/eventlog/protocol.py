"""The interface of the event log between serving and curation: durable events, read in order, by position.

Two implementations: `eventlog.journal`, segments on a disk that replicas and jobs share, and `eventlog.kafka`.
A partition is written by one process at a time and read in order; its positions only grow. The log does not store how
far it was read: the table keeps the positions in the commit that holds the rows.
"""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from sdpo_ray.records import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Events that one `poll` returned. Made by an `EventLog`; read by `curate.ingest`."""

    events: tuple[Event, ...]
    """Those of one partition are in its order."""
    positions: dict[str, int]
    """Positions to continue from, for the partitions that had events."""
    at_end: frozenset[str]
    """Partitions that were read to their end."""


class EventLog(Protocol):
    """A durable log of turns and feedback, which are acknowledged once they are in it."""

    def append(self, event: Event) -> "Future[None]":
        """Queue an event. The future is done once the event is durable, or holds the exception when it is not.

        Raises DataError for an event that cannot be encoded, ValueError once the log is closed.
        """

    def partitions(self) -> list[str]:
        """Names of all partitions, oldest first."""

    def poll(self, after: Mapping[str, int], *, max_events: int, max_bytes: int) -> Batch:
        """Read events after the positions `after`; 0 for partitions it does not name.

        At least one event if there is any, then up to the limits. Raises CorruptLog for events that fail their
        checksum or cannot be decoded, LostEvents when events after a position are no longer in the log.
        """

    def truncate(self, upto: Mapping[str, int]) -> None:
        """Delete events before these positions, as far as the log supports it: the caller has stored them."""

    def backlog_bytes(self, after: Mapping[str, int]) -> int:
        """Approximate number of bytes after these positions, for alerts."""

    def close(self) -> None:
        """Write and acknowledge the queued events, then close."""
