"""The tables `turns`, `feedback`, `pending` and `interactions`, on Delta Lake.

A commit of rows carries the positions up to which their sources were read, as Delta `txn` actions. So the table, not
the reader, knows what it holds. Readers select rows by the column `batch`, the number of the commit that added a row,
which compaction, erasure and vacuum keep. Delta does not call fsync; `sync` does. Truncate a source only after `sync`.
"""

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from operator import and_
from typing import Self

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from sdpo_ray.io.paths import Layout
from sdpo_ray.tables import compaction, row_deletion
from sdpo_ray.tables.commits import APPENDED, ATTEMPTS, MAINTAINED, commit_rows, opened, paths, pause
from sdpo_ray.tables.create import open_table
from sdpo_ray.tables.object_store import LOG, TableLocation
from sdpo_ray.tables.object_store import read_files as read_files
from sdpo_ray.tables.specs import BATCH, FEEDBACKS, INTERACTIONS, PENDINGS, TURNS, TableSpec


class Table:
    """One Delta table as of `version`; `refresh` moves to the newest."""

    def __init__(self, layout: Layout, spec: TableSpec) -> None:
        """Open the table; create it when it is missing. Raises ConfigError for a table of another schema."""
        self.name = spec.name
        self._spec = spec
        self._location = TableLocation(layout.table(spec.name))
        self._delta = open_table(self._location, spec)
        self._is_stale = False
        """Whether positions come from a newer version than the caller has read."""
        self._cache = _VersionCache(self.version)
        self._synced_files: set[str] = set()
        self._synced_version = -1

    @classmethod
    def turns(cls, layout: Layout) -> Self:
        return cls(layout, TURNS)

    @classmethod
    def feedback(cls, layout: Layout) -> Self:
        return cls(layout, FEEDBACKS)

    @classmethod
    def pending(cls, layout: Layout) -> Self:
        return cls(layout, PENDINGS)

    @classmethod
    def interactions(cls, layout: Layout) -> Self:
        return cls(layout, INTERACTIONS)

    @property
    def version(self) -> int:
        """Delta's version; every commit raises it, maintenance included."""
        version: int = self._delta.version()
        return version

    @property
    def batch(self) -> int:
        """Number of the last commit of rows; 0 before the first."""
        return self.position(APPENDED) or 0

    @property
    def num_rows(self) -> int:
        """Number of rows, from the log's statistics: no data file is opened."""
        count: int = self._delta.count()
        return count

    def refresh(self) -> None:
        """Move to the newest version."""
        self._is_stale = False
        try:
            self._delta.update_incremental()
        except DeltaError:
            # Log entries between the two versions were removed.
            self._delta = opened(self._location)

    def position(self, log: str) -> int | None:
        """The last committed position of source `log`; None when there is none.

        When the log entries of this version were removed, the position is that of the newest version, and `append`
        returns None until the next `refresh`.
        """
        try:
            return self._cached().position(log, self._delta)
        except DeltaError:
            self._delta, self._is_stale = opened(self._location), True
            return self._cached().position(log, self._delta)

    def append(self, rows: pa.Table, positions: Mapping[str, int]) -> int | None:
        """Commit `rows` and `positions` atomically; return the number of the batch.

        Returns None when another writer committed rows, or one of the positions, since `refresh`: then refresh, read
        again and decide anew. Also returns None when the store failed to report whether this commit was made. Raises
        DeltaError or OSError when the table cannot be written.
        """
        batch = self.batch + 1
        numbered = self._spec.numbered(rows, batch)
        carried = {**positions, APPENDED: batch}
        expected = {name: self.position(name) for name in carried}
        if self._is_stale:
            return None
        for attempt in range(ATTEMPTS):
            try:
                commit_rows(self._delta, numbered, carried)
            except (DeltaError, OSError):
                newest = opened(self._location)
                if any(newest.transaction_version(name) != before for name, before in expected.items()):
                    return None
                if attempt == ATTEMPTS - 1:
                    raise
                # Another process replaced files, which does not conflict with appending rows: try again.
                self._delta = newest
                pause(attempt)
            else:
                return batch
        raise AssertionError

    def sync(self) -> None:
        """Return once all files of this version and their log entries are on disk.

        No-op in an object store, where acknowledged writes are durable.
        """
        files, version = set(paths(self._delta)), self.version
        entries = [f"{LOG}/{each:020d}.json" for each in range(self._synced_version + 1, version + 1)]
        self._location.sync([*sorted(files - self._synced_files), *entries])
        self._synced_files, self._synced_version = files, version

    def read(
        self,
        columns: Sequence[str] | None = None,
        *,
        where: ds.Expression | None = None,
        after: int | None = None,
        upto: int | None = None,
    ) -> pa.Table:
        """Rows with after < batch <= upto, in no particular order; the column `batch` only if `columns` names it.

        `columns` None means all others. Files outside the range of `batch` or of a condition on the time column are
        skipped unread. When another process removed files of this version, the newest version is read. Raises
        FileNotFoundError or DeltaError.
        """
        wanted = list(self._spec.rows.names if columns is None else columns)
        conditions = [where] if where is not None else []
        conditions += [ds.field(BATCH) > after] if after is not None else []
        conditions += [ds.field(BATCH) <= upto] if upto is not None else []
        condition = reduce(and_, conditions) if conditions else None
        for attempt in range(ATTEMPTS):
            try:
                return self._rows().to_table(columns=wanted, filter=condition, use_threads=False)
            except (FileNotFoundError, DeltaError):
                if attempt == ATTEMPTS - 1:
                    raise
                self._delta = opened(self._location)
        raise AssertionError

    def files(self, batches: Collection[int] | None = None) -> list[str]:
        """Data files that may hold rows of these batches, or all files; arguments of `read_files`.

        Files stay on disk until a maintenance `keep_files_h` hours after they were replaced, or until a purge.
        """
        wanted = sorted(batches) if batches is not None else None
        actions = pa.table(self._delta.get_add_actions(flatten=True))
        found: list[str] = []
        if not actions.num_rows:
            return found
        columns = (actions[name].to_pylist() for name in ("path", f"min.{BATCH}", f"max.{BATCH}"))
        for name, low, high in zip(*columns, strict=True):
            index = bisect_left(wanted, low) if wanted is not None else 0
            if wanted is None or (index < len(wanted) and wanted[index] <= high):
                found.append(f"{self._location.uri}/{name}")
        return found

    def delete(self, ids: Collection[str]) -> int:
        """Delete rows by id; return their number. They stay on disk until `purge`. Raises DeltaError."""
        removed = row_deletion.delete(self._location, self._spec, ids)
        self.refresh()
        return removed

    def purge(self) -> None:
        """Delete all data files that the newest version does not name: deleted rows and leftovers of dead processes.

        Readers of an older version read the newest instead. Raises DeltaError.
        """
        row_deletion.purge(self._location, self._spec)
        self.refresh()

    def maintain(self, *, every: int, keep_files_h: float, expire_before_s: float | None = None) -> bool:
        """Compact the table if at least `every` commits followed the last maintenance; whether that was done.

        Files that were replaced more than `keep_files_h` hours ago are deleted, as are leftovers of dead processes.
        Rows of before `expire_before_s` (Unix time) are deleted first, unless it is None.
        """
        if not self.is_due(every):
            return False
        # Another process may have done it just now.
        self.refresh()
        if not self.is_due(every):
            return False
        done = compaction.maintain(
            self._location, self._spec, keep_files_h=keep_files_h, expire_before_s=expire_before_s
        )
        self.refresh()
        return done

    def is_due(self, every: int) -> bool:
        """Whether at least `every` commits followed the last maintenance."""
        return self.version - (self.position(MAINTAINED) or 0) >= every

    def _rows(self) -> ds.Dataset:
        cached = self._cached()
        if cached.dataset is None:
            cached.dataset = self._delta.to_pyarrow_dataset(
                filesystem=self._location.filesystem, schema=self._spec.schema
            )
        return cached.dataset

    def _cached(self) -> "_VersionCache":
        if self._cache.version != self.version:
            self._cache = _VersionCache(self.version)
        return self._cache


class _VersionCache:
    """Positions and dataset of one version: Delta reads its log again for each position, and for all statistics."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.dataset: ds.Dataset | None = None
        self._positions: dict[str, int | None] = {}

    def position(self, log: str, delta: DeltaTable) -> int | None:
        if log not in self._positions:
            self._positions[log] = delta.transaction_version(log)
        return self._positions[log]
