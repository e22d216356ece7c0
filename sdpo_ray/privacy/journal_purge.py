"""The event log of a run, emptied of what an erased user left in it."""

import time
from collections.abc import Callable

from sdpo_ray.config import Run
from sdpo_ray.curate.ingest import ingest
from sdpo_ray.errors import NotReady
from sdpo_ray.eventlog.factory import open_log
from sdpo_ray.io.paths import Layout
from sdpo_ray.privacy.user_footprint import UserTables
from sdpo_ray.records import Event
from sdpo_ray.tables.tombstones import Tombstones

_POLL_S = 0.5
_GRACE_S = 60.0


class JournalPurger:
    """The log of one run, and the tables that it is read into. `say` hears what it waits for."""

    def __init__(self, run: Run, layout: Layout, tables: UserTables, say: Callable[[str], None]) -> None:
        self._run = run
        self._tables = tables
        self._say = say
        self._log = open_log(layout, run.capture, name="erase")
        self._erasures = Tombstones(layout)

    def close(self) -> None:
        self._log.close()

    def ingest(self) -> None:
        """Read the log into the tables, without what was erased; the training loop may do the same meanwhile."""
        curate = self._run.curate
        ingest(
            self._log,
            self._tables.turns,
            self._tables.feedback,
            max_turns=curate.max_batch_turns,
            max_bytes=curate.max_batch_mib << 20,
            erased=self._erasures.covers,
        )

    def empty(self) -> int | None:
        """Read it until nothing of what was erased is left on disk; what `count` says then.

        Raises NotReady where a replica holds on to it.
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
            self._say(f"{left} events lie in a file that a replica writes; it is sealed when it is {seal_s:g} s old")
            time.sleep(_POLL_S)

    def count(self, is_theirs: Callable[[Event], bool]) -> int | None:
        """How many such events the log holds, read or not; None where it is Kafka, and not empty."""
        if self._run.capture.kafka.brokers:
            return None if self._log.backlog_bytes({}) else 0
        curate = self._run.curate
        after: dict[str, int] = {}
        found = 0
        while True:
            batch = self._log.poll(after, max_events=curate.max_batch_turns, max_bytes=curate.max_batch_mib << 20)
            if not batch.positions:
                return found
            after |= batch.positions
            found += sum(is_theirs(event) for event in batch.events)
