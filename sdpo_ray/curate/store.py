"""The two tables, `turns` and `interactions`, on Delta Lake.

How far each log was read is committed with the rows it gave, as Delta `txn` actions: the table, not the reader,
knows what it holds. Delta calls no fsync, so `sync` does, and nothing upstream is removed before it returned.
Statistics in Delta's log are kept for one time column alone: they would hold user text otherwise.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError

from sdpo_ray.storage import Layout, fsync_directory
from sdpo_ray.tables import INTERACTION, TURN

TURN_KEYS = pa.schema([pa.field(name, pa.string()) for name in ("prompt_key", "parent_key", "continuation_key")])
"""Columns of the table `turns` beside the turn itself: what pairing needs (`curate.sessionize`)."""
FILE = "__filename"
"""Column that names the data file a row lies in; asked for like any other."""


class Table:
    """One Delta table as of `version`; `refresh` moves to the newest."""

    def __init__(self, path: Path, schema: pa.Schema, *, time_column: str) -> None:
        """Open the table at `path`, which is created when it is missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._schema = schema
        # "ignore": of two processes that create it at once, both go on with the one that is there.
        self._delta = DeltaTable.create(
            str(path), schema, mode="ignore", configuration={"delta.dataSkippingStatsColumns": time_column}
        )
        self._delta.update_incremental()
        self._synced: set[str] = set()

    @classmethod
    def turns(cls, layout: Layout) -> Self:
        return cls(layout.turns, pa.schema([*TURN, *TURN_KEYS]), time_column="finished_at_s")

    @classmethod
    def interactions(cls, layout: Layout) -> Self:
        return cls(layout.interactions, INTERACTION, time_column="follow_up_at_s")

    @property
    def version(self) -> int:
        version: int = self._delta.version()
        return version

    @property
    def num_rows(self) -> int:
        return int(sum(pa.chunked_array(self._delta.get_add_actions()["num_records"]).to_pylist()))

    def refresh(self) -> None:
        self._delta.update_incremental()

    def position(self, log: str) -> int | None:
        """The position in `log` that was committed last, None when there was none."""
        position: int | None = self._delta.transaction_version(log)
        return position

    def append(self, rows: pa.Table, positions: Mapping[str, int]) -> bool:
        """Commit `rows` and `positions` in one, or neither.

        False when another writer committed one of the same positions since `refresh`: look again, then decide anew.
        """
        transactions = [Transaction(log, position) for log, position in positions.items()]
        try:
            write_deltalake(
                self._delta,
                rows.cast(self._schema),
                mode="append",
                writer_properties=WriterProperties(compression="ZSTD"),
                commit_properties=CommitProperties(app_transactions=transactions),
            )
        except CommitFailedError as error:
            if "Concurrent transaction" not in str(error):
                raise
            return False
        return True

    def sync(self) -> None:
        """Return once every file of this version, and the log that names them, is on disk."""
        log = self._path / "_delta_log"
        # By suffix: a commit of another process in the making has a name of its own and soon none.
        logged = [*log.glob("*.json"), *log.glob("*.parquet")]
        names = {str(self._path / name) for name in self._files()} | {str(file) for file in logged}
        for name in sorted(names - self._synced):
            fd = os.open(name, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        for directory in (log, self._path, self._path.parent):
            fsync_directory(directory)
        self._synced = names

    def read(
        self, columns: Sequence[str] | None = None, *, where: ds.Expression | None = None, since: int | None = None
    ) -> pa.Table:
        """Rows in no particular order; with `since`, those of files that came after that version."""
        names = self._files()
        if since is not None:
            names -= set(_files(DeltaTable(str(self._path), version=since)))
        return read_files([str(self._path / name) for name in sorted(names)], self._schema, columns, where)

    def _files(self) -> set[str]:
        return _files(self._delta)


def read_files(
    files: Sequence[str], schema: pa.Schema, columns: Sequence[str] | None, where: ds.Expression | None
) -> pa.Table:
    """Rows of data files, read with one thread."""
    dataset = ds.dataset(list(files), schema=schema, format="parquet")
    return dataset.to_table(columns=None if columns is None else list(columns), filter=where, use_threads=False)


def _files(delta: DeltaTable) -> set[str]:
    return set(pa.chunked_array(delta.get_add_actions()["path"]).to_pylist())
