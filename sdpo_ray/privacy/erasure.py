"""Everything that an erasure does, in an order in which whoever is killed finds the rest when it begins again.

What is derived goes first and the turns that it was found by go last. The event log is emptied before, while the training loop
may go on; the rest is done in a turn of its own.
"""

import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from sdpo_ray.capture.pairing_keys import owner_digest
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.config import Run
from sdpo_ray.explain.pages import page_of
from sdpo_ray.io.locks import data_lock, file_lock
from sdpo_ray.io.paths import Layout
from sdpo_ray.personal import store
from sdpo_ray.privacy.data_subject import DataSubject
from sdpo_ray.privacy.journal_purge import JournalPurger
from sdpo_ray.privacy.run_history import LearnedVersion, read_run_history
from sdpo_ray.privacy.snapshot_erasure import rewrite, rows_of, snapshots_under
from sdpo_ray.privacy.user_footprint import UserFootprint, UserTables, count, remove
from sdpo_ray.promote.artifact_erasure import erase_in_file
from sdpo_ray.records import Event
from sdpo_ray.records.run_events import UserErased
from sdpo_ray.tables.tombstones import Tombstone, Tombstones
from sdpo_ray.telemetry import EventFile

_MLFLOW_DATABASE, _MLFLOW_ARTIFACTS = "mlflow.db", "mlartifacts"


@dataclass(slots=True, kw_only=True)
class ErasureReport:
    """What was removed, or would be. Printed by `jobs.erase`; names nobody."""

    dry_run: bool
    erasure_id: str = ""
    """As in `erasures.json` and the snapshots' `erased.json`."""
    rows: dict[str, int] = field(default_factory=dict)
    """By table."""
    events_in_log: int | None = None
    """Still in the event log; None on Kafka, which may keep what it was sent until its retention ends."""
    snapshots: dict[str, int] = field(default_factory=dict)
    """Interactions taken out, by directory."""
    records: list[str] = field(default_factory=list)
    """Candidates' records that showed what they said."""
    mlflow_runs: int = 0
    """Runs whose artifacts did, and those of personal policies; not looked at in a dry run."""
    personal: list[str] = field(default_factory=list)
    """Owners whose personal policy was theirs, or had learned from them; a tenant's is learned again without them."""
    leftovers: list[str] = field(default_factory=list)
    """Of work that was broken off, and pages of `jobs/explain.py`."""
    alike: int = 0
    """Turns that may be theirs or of somebody who used the same words: they stay."""
    learned: list[LearnedVersion] = field(default_factory=list)
    newest_release_without: int | None = None


class Erasure:
    """One erasure of one run. `say` hears what it is at."""

    def __init__(self, run: Run, whose: DataSubject, say: Callable[[str], None]) -> None:
        self._run = run
        self._whose = whose
        self._say = say
        self._layout = run.layout
        self._tables = UserTables.of(self._layout)
        self._log = JournalPurger(run, self._layout, self._tables, say)
        self._erasures = Tombstones(self._layout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._log.close()

    def preview(self) -> ErasureReport:
        """What `go` would remove. Changes nothing."""
        traces = self._traces()
        found = ErasureReport(dry_run=True, rows=count(self._tables, traces), alike=traces.alike)
        found.events_in_log = self._log.count(self._is_theirs(traces))
        found.snapshots = {str(path): len(ids) for path, ids in self._held(traces)}
        gone = self._whose.learned_from(self._layout, traces)
        found.personal = self._personal(gone)
        self._add_lineage(found, gone)
        return found

    def go(self) -> ErasureReport:
        """Forget them.

        Raises NotReady where a replica holds on to what they said, CorruptLog, LostEvents, DataError for a broken file.
        """
        interrupted = self._erasures.unfinished
        erasure = self._erasures.add(self._whose.users, upto_s=time.time())
        self._say("emptying the event log")
        if self._whose.turn_ids:
            # Where a turn is still in the log, nothing is known of its conversation.
            self._log.ingest()
            erasure = self._remember(erasure, self._traces())
        found = ErasureReport(dry_run=False, erasure_id=erasure.erasure_id, events_in_log=self._log.empty())
        waiting = "waiting until the round or cycle under way is done"
        # Personal policies are drawn and published without the training loop's turn.
        with data_lock(self._layout, lambda: self._say(waiting)), file_lock(self._layout.personal):
            traces = self._traces()
            erasure = self._remember(erasure, traces)
            found.alike = traces.alike
            gone = self._forget(found, traces)
            self._say("deleting rows")
            found.rows = remove(self._tables, traces)
            if any(found.rows.values()) or interrupted:
                self._say("removing the files that held them")
                self._tables.purge()
            self._erasures.finish([erasure, *self._whose.erasures(self._layout)])
        EventFile(self._layout.events).write(
            UserErased(erasure_id=erasure.erasure_id, snapshots=len(found.snapshots), rows=found.rows)
        )
        self._add_lineage(found, gone)
        return found

    def _traces(self) -> UserFootprint:
        """Also of turns that an erasure of theirs remembers which was broken off."""
        broken_off = [each for each in self._whose.erasures(self._layout) if not each.done]
        if not broken_off:
            return self._whose.traces(self._tables)
        self._tables.refresh()
        stored = self._tables.turns.read(["turn_id"])["turn_id"].to_pylist()
        return self._whose.traces(self._tables, also=self._erasures.reload().among(stored, broken_off))

    def _remember(self, erasure: Tombstone, traces: UserFootprint) -> Tombstone:
        return self._erasures.extend(erasure, turns=traces.turn_ids, conversations=traces.conversations)

    def _is_theirs(self, traces: UserFootprint) -> Callable[[Event], bool]:
        users = set(self._whose.users)
        return lambda event: (event.tenant, event.user) in users or event.turn_id in traces.turn_ids

    def _held(self, traces: UserFootprint) -> Iterator[tuple[Path, list[str]]]:
        for path in snapshots_under(self._layout.root):
            if ids := rows_of(path, self._whose.users, traces.said):
                yield path, ids

    def _forget(self, found: ErasureReport, traces: UserFootprint) -> frozenset[str]:
        """Clear everything that shows what they said, apart from the tables; the ids of their interactions."""
        # First, since they are found by what their snapshots say.
        found.personal = self._personal(self._whose.learned_from(self._layout, traces))
        for owner in found.personal:
            self._say("removing personal policies")
            store.remove(self._layout, owner)
        for path, ids in self._held(traces):
            self._say(f"rewriting {path}")
            rewrite(path, ids, erasure_id=found.erasure_id)
            found.snapshots[str(path)] = len(ids)
        gone = self._whose.learned_from(self._layout, traces)
        self._say("reading the candidates' records")
        root = self._layout.root
        for path in [*_broken_off(self._layout), *self._begun(gone), *(page_of(each) for each in gone)]:
            if path.exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                found.leftovers.append(str(path))
        found.records = [str(path) for path in _records(root) if erase_in_file(path, gone)]
        if self._run.promote.tracking_uri or (root / _MLFLOW_DATABASE).exists():
            self._say("asking MLflow")
            from sdpo_ray.personal.mlflow_runs import PersonalRuns
            from sdpo_ray.promote.registry import Registry

            registry = Registry.of(self._run)
            found.mlflow_runs = registry.erase(gone)
            runs = PersonalRuns(registry.tracking, model_name=self._run.promote.model_name)
            found.mlflow_runs += runs.forget({*found.personal, *self._owners()})
        return gone

    def _owners(self) -> set[str]:
        """Those whose personal policies would be theirs."""
        key = Pseudonyms.load(self._layout.pseudonym_keys).pairing_key
        return {owner_digest(key, tenant=tenant, pseudonym=name) for tenant, name in self._whose.users}

    def _personal(self, gone: Collection[str]) -> list[str]:
        """Owners of what is theirs, and of what has learned from them."""
        known = set(store.known_owners(self._layout))
        return sorted((self._owners() & known) | {each.owner for each in store.snapshot_uses(self._layout, gone)})

    def _begun(self, gone: Collection[str]) -> list[Path]:
        """What an update that was broken off has learned of them so far: it begins anew."""
        drew = read_run_history(self._layout).drew(gone)
        candidates = [self._layout.candidate(update.policy_version) for update in drew]
        return [path.with_name(f".{path.name}.train") for path in candidates]

    def _add_lineage(self, found: ErasureReport, gone: Collection[str]) -> None:
        books = read_run_history(self._layout)
        found.learned = books.learned(gone)
        found.newest_release_without = books.newest_release_without(found.learned)


def _records(root: Path) -> list[Path]:
    """Records of candidates; MLflow's copies are its own to change."""
    found = [*sorted(root.rglob("candidate.json")), *sorted(root.glob("cycles/*/distill.json"))]
    return [path for path in found if not path.is_relative_to(root / _MLFLOW_ARTIFACTS)]


def _broken_off(layout: Layout) -> list[Path]:
    """What a draw, an update or a record left half-written, which nobody goes on with."""
    patterns = ("snapshots/.*.partial", "candidates/.*.partial", "candidates/*/.*.json.*", "cycles/*/.*.json.*")
    of_wheel = [path for pattern in patterns for path in sorted(layout.root.glob(pattern))]
    return [*of_wheel, *store.left_behind(layout)]
