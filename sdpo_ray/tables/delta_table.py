"""The tables `turns`, `feedback`, `pending` and `interactions`, on Delta Lake.

How far each log was read is committed with the rows it gave, as Delta `txn` actions: the table, not the reader, knows
what it holds. Readers go by the column `batch`, the number of the commit that brought a row, which outlives compaction,
erasure and vacuum. Delta calls no fsync, so `sync` does, and nothing upstream is removed before it returned.
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
from sdpo_ray.tables.commits import APPENDED, MAINTAINED, TRIES, commit_rows, opened, paths, pause
from sdpo_ray.tables.create import open_table
from sdpo_ray.tables.object_store import LOG, TableLocation
from sdpo_ray.tables.object_store import read_files as read_files
from sdpo_ray.tables.specs import BATCH, FEEDBACKS, INTERACTIONS, PENDINGS, TURNS, TableSpec


class Table:
    """One Delta table as of `version`; `refresh` moves to the newest."""

    def __init__(self, layout: Layout, kind: TableSpec) -> None:
        """Open the table; it is created when it is missing, and migrated when it is old. Raises ConfigError."""
        self.name = kind.name
        self._kind = kind
        self._place = TableLocation(layout.table(kind.name))
        self._delta = open_table(self._place, kind)
        self._overtaken = False
        self._looked_up = _LookedUp(self.version)
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
        """Delta's version, which everything that is done to the table raises."""
        version: int = self._delta.version()
        return version

    @property
    def batch(self) -> int:
        """Number of the last commit of rows; 0 before the first."""
        return self.position(APPENDED) or 0

    @property
    def num_rows(self) -> int:
        """From the log's statistics: no data file is opened."""
        count: int = self._delta.count()
        return count

    def refresh(self) -> None:
        """Move to the newest version."""
        self._overtaken = False
        try:
            self._delta.update_incremental()
        except DeltaError:
            # What was between the two versions has been removed.
            self._delta = opened(self._place)

    def position(self, log: str) -> int | None:
        """The position in `log` that was committed last, None when there was none.

        Of the newest version where the log entries of this one have been removed; `append` then wants a `refresh`.
        """
        try:
            return self._known().position(log, self._delta)
        except DeltaError:
            self._delta, self._overtaken = opened(self._place), True
            return self._known().position(log, self._delta)

    def append(self, rows: pa.Table, positions: Mapping[str, int]) -> int | None:
        """Commit `rows` and `positions` in one, or neither; the number of the batch.

        None when another writer committed rows, or one of the positions, since `refresh`: refresh, look again, then
        decide anew. So it is where the store leaves open whether this very commit was made. Raises DeltaError or
        OSError when the table cannot be written.
        """
        batch = self.batch + 1
        numbered = self._kind.numbered(rows, batch)
        carried = {**positions, APPENDED: batch}
        expected = {name: self.position(name) for name in carried}
        if self._overtaken:
            return None
        for attempt in range(TRIES):
            try:
                commit_rows(self._delta, numbered, carried)
            except (DeltaError, OSError):
                newest = opened(self._place)
                if any(newest.transaction_version(name) != before for name, before in expected.items()):
                    return None
                if attempt == TRIES - 1:
                    raise
                # Files were replaced meanwhile, which a commit of rows alone need not care for.
                self._delta = newest
                pause(attempt)
            else:
                return batch
        raise AssertionError

    def sync(self) -> None:
        """Return once every file of this version, and the log that names them, is on disk.

        In an object store there is nothing to do: what it acknowledged is durable.
        """
        files, version = set(paths(self._delta)), self.version
        logged = [f"{LOG}/{each:020d}.json" for each in range(self._synced_version + 1, version + 1)]
        self._place.sync([*sorted(files - self._synced_files), *logged])
        self._synced_files, self._synced_version = files, version

    def read(
        self,
        columns: Sequence[str] | None = None,
        *,
        where: ds.Expression | None = None,
        after: int | None = None,
        upto: int | None = None,
    ) -> pa.Table:
        """Rows with after < batch <= upto, in no particular order; the column `batch` only when it is asked for.

        Files are skipped by `batch` and by time without being opened. Where another process removed files of this
        version, the newest is read instead.
        """
        wanted = list(self._kind.rows.names if columns is None else columns)
        conditions = [where] if where is not None else []
        conditions += [ds.field(BATCH) > after] if after is not None else []
        conditions += [ds.field(BATCH) <= upto] if upto is not None else []
        condition = reduce(and_, conditions) if conditions else None
        for attempt in range(TRIES):
            try:
                return self._rows().to_table(columns=wanted, filter=condition, use_threads=False)
            except (FileNotFoundError, DeltaError):
                if attempt == TRIES - 1:
                    raise
                self._delta = opened(self._place)
        raise AssertionError

    def files(self, batches: Collection[int] | None = None) -> list[str]:
        """Data files, as `read_files` takes them, that may hold rows of these batches, of any where none are named.

        They stay until a maintenance that comes `keep_files_h` after they were replaced, or a purge.
        """
        named = sorted(batches) if batches is not None else None
        actions = pa.table(self._delta.get_add_actions(flatten=True))
        found: list[str] = []
        if not actions.num_rows:
            return found
        columns = (actions[name].to_pylist() for name in ("path", f"min.{BATCH}", f"max.{BATCH}"))
        for name, low, high in zip(*columns, strict=True):
            place = bisect_left(named, low) if named is not None else 0
            if named is None or (place < len(named) and named[place] <= high):
                found.append(f"{self._place.uri}/{name}")
        return found

    def delete(self, ids: Collection[str]) -> int:
        """Take rows out by id; their number. They stay on disk until `purge`. Raises DeltaError."""
        removed = row_deletion.delete(self._place, self._kind, ids)
        self.refresh()
        return removed

    def purge(self) -> None:
        """Remove from the disk whatever this version does not hold: rows that were taken out, and what was left over.

        Readers of an older version look again. Raises DeltaError.
        """
        row_deletion.purge(self._place, self._kind)
        self.refresh()

    def maintain(self, *, every: int, keep_files_h: float, expire_before_s: float | None = None) -> bool:
        """Compact the table, when `every` commits have come since the last time; True when it was done now.

        Files that were replaced more than `keep_files_h` hours ago are removed, as is what processes that died left
        over. With `expire_before_s`, rows of before that time are taken out first.
        """
        if not self.is_due(every):
            return False
        # Another process may just have done it.
        self.refresh()
        if not self.is_due(every):
            return False
        done = compaction.maintain(self._place, self._kind, keep_files_h=keep_files_h, expire_before_s=expire_before_s)
        self.refresh()
        return done

    def is_due(self, every: int) -> bool:
        """Whether `every` commits have come since the last maintenance."""
        return self.version - (self.position(MAINTAINED) or 0) >= every

    def _rows(self) -> ds.Dataset:
        known = self._known()
        if known.dataset is None:
            known.dataset = self._delta.to_pyarrow_dataset(filesystem=self._place.filesystem, schema=self._kind.schema)
        return known.dataset

    def _known(self) -> "_LookedUp":
        if self._looked_up.version != self.version:
            self._looked_up = _LookedUp(self.version)
        return self._looked_up


class _LookedUp:
    """What was asked of one version: Delta reads its log anew for each position, and every file's statistics."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.dataset: ds.Dataset | None = None
        self._positions: dict[str, int | None] = {}

    def position(self, log: str, delta: DeltaTable) -> int | None:
        if log not in self._positions:
            self._positions[log] = delta.transaction_version(log)
        return self._positions[log]
