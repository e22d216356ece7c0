"""The log between serving and curation: what is in it is durable, and is read in order, by position.

Two implementations: `capture.journal`, segments on a disk that replicas and jobs share, and `capture.kafka`.
A partition is written by one process at a time and read in order; its positions only grow. The reader, not the log,
knows how far it read: the table keeps the positions in the commit that holds the rows.
"""

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from sdpo_ray.records import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one `poll` found. Made by an `EventLog`; read by `curate.ingest`."""

    events: tuple[Event, ...]
    """In the order of their partition."""
    positions: dict[str, int]
    """Where to go on, of the partitions that moved."""
    at_end: frozenset[str]
    """Partitions that held nothing more while this poll looked."""


class EventLog(Protocol):
    """Where turns and feedback are durable before they are acknowledged."""

    def append(self, event: Event) -> "Future[None]":
        """Queue an event; the future is done once it is durable, or holds the reason why it is not.

        Raises DataError for what cannot be encoded, ValueError once the log is closed.
        """

    def partitions(self) -> list[str]:
        """Names of all partitions, oldest first."""

    def poll(self, after: Mapping[str, int], *, max_events: int, max_bytes: int) -> Batch:
        """Events behind the positions `after`, 0 where a partition is not named.

        At least one event where there is any, then no more than the limits. Raises CorruptLog for bytes that do not
        check out, and LostEvents where the log no longer holds what lies behind a position.
        """

    def truncate(self, upto: Mapping[str, int]) -> None:
        """Forget what lies before these positions, as far as the log can: the caller has it on disk elsewhere."""

    def backlog_bytes(self, after: Mapping[str, int]) -> int:
        """About how many bytes lie behind these positions: what the alarms look at."""

    def close(self) -> None:
        """Write and acknowledge what is queued."""
