"""The erasure of a data subject, in an order that an interrupted one can be repeated.

The event log is purged first, while the training loop may go on; the rest is done under the data lock. Derived data
goes before the rows it is found by, and turns go last.
"""

import time
from collections.abc import Callable, Collection
from typing import Self

from sdpo_ray.config import Run
from sdpo_ray.io.locks import data_lock, file_lock
from sdpo_ray.privacy.data_subject import DataSubject
from sdpo_ray.privacy.derived_data import DerivedData
from sdpo_ray.privacy.erasure_report import ErasureReport
from sdpo_ray.privacy.journal_purge import JournalPurger
from sdpo_ray.privacy.run_history import LearnedVersion, read_run_history
from sdpo_ray.privacy.user_footprint import UserFootprint, UserTables, count, remove
from sdpo_ray.records import Event
from sdpo_ray.records.run_events import UserErased
from sdpo_ray.tables.tombstones import Tombstone, Tombstones
from sdpo_ray.telemetry import EventFile


class Erasure:
    """One erasure in one run; a context manager. `on_step` is called with the name of each step."""

    def __init__(self, run: Run, subject: DataSubject, on_step: Callable[[str], None]) -> None:
        self._subject = subject
        self._on_step = on_step
        self._layout = run.layout
        self._tables = UserTables.of(self._layout)
        self._log = JournalPurger(run, self._tables, on_step)
        self._derived = DerivedData(run, subject, on_step)
        self._tombstones = Tombstones(self._layout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._log.close()

    def preview(self) -> ErasureReport:
        """What `execute` would remove. Changes nothing."""
        footprint = self._footprint()
        interaction_ids = self._subject.interaction_ids(self._layout, footprint)
        learned, newest_release_without = self._lineage(interaction_ids)
        return ErasureReport(
            dry_run=True,
            rows=count(self._tables, footprint),
            events_in_log=self._log.count(self._is_theirs(footprint)),
            snapshots={str(path): len(ids) for path, ids in self._derived.snapshots(footprint)},
            personal=self._derived.personal_owners(interaction_ids),
            ambiguous_turns=footprint.ambiguous_turns,
            learned=learned,
            newest_release_without=newest_release_without,
        )

    def execute(self) -> ErasureReport:
        """Erase the data subject's text from the run. Safe to repeat after it was interrupted.

        Raises NotReady while a replica keeps events of theirs in an open segment, CorruptLog, LostEvents, and DataError
        for a broken file.
        """
        interrupted = self._tombstones.unfinished
        tombstone = self._tombstones.add(self._subject.users, upto_s=time.time())
        self._on_step("purging the event log")
        if self._subject.turn_ids:
            # The conversation of a turn is known only once the turn is in the tables.
            self._log.ingest()
            tombstone = self._extend(tombstone, self._footprint())
        events_in_log = self._log.purge()
        # The second lock: personal policies are drawn and published without the data lock.
        with data_lock(self._layout, self._on_wait), file_lock(self._layout.personal):
            footprint = self._footprint()
            tombstone = self._extend(tombstone, footprint)
            erased = self._derived.erase(footprint, erasure_id=tombstone.erasure_id)
            self._on_step("deleting rows")
            rows = remove(self._tables, footprint)
            if any(rows.values()) or interrupted:
                self._on_step("removing the files of deleted rows")
                self._tables.purge()
            self._tombstones.finish([tombstone, *self._subject.tombstones(self._layout)])
        EventFile(self._layout.events).write(
            UserErased(erasure_id=tombstone.erasure_id, snapshots=len(erased.snapshots), rows=rows)
        )
        learned, newest_release_without = self._lineage(erased.interaction_ids)
        return ErasureReport(
            dry_run=False,
            erasure_id=tombstone.erasure_id,
            rows=rows,
            events_in_log=events_in_log,
            snapshots=erased.snapshots,
            records=erased.records,
            mlflow_runs=erased.mlflow_runs,
            personal=erased.personal,
            leftovers=erased.leftovers,
            ambiguous_turns=footprint.ambiguous_turns,
            learned=learned,
            newest_release_without=newest_release_without,
        )

    def _on_wait(self) -> None:
        self._on_step("waiting for the curation round or cycle under way")

    def _footprint(self) -> UserFootprint:
        """Includes turns that only an interrupted erasure's tombstone still names."""
        unfinished = [each for each in self._subject.tombstones(self._layout) if not each.done]
        if not unfinished:
            return self._subject.footprint(self._tables)
        self._tables.refresh()
        stored = self._tables.turns.read(["turn_id"])["turn_id"].to_pylist()
        also = self._tombstones.reload().among(stored, unfinished)
        return self._subject.footprint(self._tables, also=also)

    def _extend(self, tombstone: Tombstone, footprint: UserFootprint) -> Tombstone:
        return self._tombstones.extend(tombstone, turns=footprint.turn_ids, conversations=footprint.conversations)

    def _is_theirs(self, footprint: UserFootprint) -> Callable[[Event], bool]:
        users = set(self._subject.users)
        return lambda event: (event.tenant, event.user) in users or event.turn_id in footprint.turn_ids

    def _lineage(self, interaction_ids: Collection[str]) -> tuple[list[LearnedVersion], int | None]:
        """The versions that learned from these interactions, and the newest release that did not."""
        history = read_run_history(self._layout)
        learned = history.learned(interaction_ids)
        return learned, history.newest_release_without(learned)
