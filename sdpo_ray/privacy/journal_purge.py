"""Removal of an erased user's events from the run's event log."""

import time
from collections.abc import Callable

from sdpo_ray.config import Run
from sdpo_ray.curate.ingest import ingest
from sdpo_ray.errors import NotReady
from sdpo_ray.eventlog.factory import open_log
from sdpo_ray.privacy.user_footprint import UserTables
from sdpo_ray.records import Event
from sdpo_ray.tables.tombstones import Tombstones

_POLL_S = 0.5
_GRACE_S = 60.0


class JournalPurger:
    """Moves events from the log of one run to its tables, without erased ones, until the log holds none of those.

    `on_step` is called with what it waits for.
    """

    def __init__(self, run: Run, tables: UserTables, on_step: Callable[[str], None]) -> None:
        self._run = run
        self._tables = tables
        self._on_step = on_step
        self._log = open_log(run.layout, run.capture, name="erase")
        self._erasures = Tombstones(run.layout)

    def close(self) -> None:
        self._log.close()

    def ingest(self) -> None:
        """Append new events to the tables, without erased ones. Safe while the training loop does the same."""
        curate = self._run.curate
        ingest(
            self._log,
            self._tables.turns,
            self._tables.feedback,
            max_turns=curate.max_batch_turns,
            max_bytes=curate.max_batch_mib << 20,
            erased=self._erasures.covers,
        )

    def purge(self) -> int | None:
        """Ingest until the log holds no erased event on disk; returns the last `count`, 0 or None.

        Raises NotReady when a segment that a replica writes to still holds some after its seal time and a minute.
        """
        seal_s = self._run.capture.journal.segment_s
        deadline_s = time.monotonic() + seal_s + _GRACE_S
        while True:
            self.ingest()
            left = self.count(self._erasures.covers)
            if not left:
                return left
            if time.monotonic() > deadline_s:
                raise NotReady(
                    f"the event log still holds {left} of their events {seal_s + _GRACE_S:.0f} s after they were read: "
                    "is there a replica that neither writes nor ends? Nothing else was removed; run this again"
                )
            self._on_step(f"{left} events are in a segment that a replica writes to; it is sealed after {seal_s:g} s")
            time.sleep(_POLL_S)

    def count(self, is_theirs: Callable[[Event], bool]) -> int | None:
        """Events in the log for which `is_theirs`, ingested or not; None for a Kafka topic that is not empty."""
        if self._run.capture.kafka.brokers:
            return None if self._log.backlog_bytes({}) else 0
        curate = self._run.curate
        after: dict[str, int] = {}
        total = 0
        while True:
            batch = self._log.poll(after, max_events=curate.max_batch_turns, max_bytes=curate.max_batch_mib << 20)
            if not batch.positions:
                return total
            after |= batch.positions
            total += sum(is_theirs(event) for event in batch.events)
