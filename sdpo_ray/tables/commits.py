"""Commits of a Delta table, and the numbers they carry.

A commit carries positions as Delta `txn` actions (Delta protocol, "Transaction Identifiers"): of two commits that
carry the same one, begun on the same version, the second fails. Our own numbers are such positions, too.
"""

import random
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import pyarrow as pa
from deltalake import (
    CommitProperties,
    DeltaTable,
    PostCommitHookProperties,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import DeltaError

from sdpo_ray.tables.object_store import TableLocation

APPENDED = "table.batch"
"""Number of the last commit of rows."""
REWRITTEN = "table.rewrite"
"""Grows with every commit that replaces files: no two of them may be under way at once."""
MAINTAINED = "table.maintained"
"""Delta version at which the table was last compacted."""
SCHEMA = "table.schema"
"""Version of the table's schema, `specs.SCHEMA_VERSION`."""

ROWS_A_GROUP = 4096
"""Of a Parquet row group: what a reader skips, or decodes at once."""
WRITER = WriterProperties(compression="ZSTD", max_row_group_size=ROWS_A_GROUP)
NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
"""Checkpoints are made by `tables.compaction` alone, which syncs them before it removes what they replace."""
TRIES = 8
_Result = TypeVar("_Result")


def opened(place: TableLocation) -> DeltaTable:
    """The newest version; tried again where a maintainer removes old log entries at that moment."""
    for attempt in range(TRIES):
        try:
            return DeltaTable(place.uri)
        except DeltaError:
            if attempt == TRIES - 1:
                raise
            pause(attempt)
    raise AssertionError


def paths(delta: DeltaTable) -> list[str]:
    """Names of the data files of a version."""
    names: list[str] = pa.table(delta.get_add_actions())["path"].to_pylist()
    return names


def number(delta: DeltaTable, name: str) -> int:
    """A position, 0 where there is none."""
    position: int | None = delta.transaction_version(name)
    return position or 0


def carrying(positions: Mapping[str, int]) -> CommitProperties:
    return CommitProperties(app_transactions=[Transaction(name, position) for name, position in positions.items()])


def commit_rows(delta: DeltaTable, rows: pa.Table, positions: Mapping[str, int]) -> None:
    """One commit of rows, any number, and positions. Raises DeltaError, OSError."""
    write_deltalake(
        delta,
        rows,
        mode="append",
        writer_properties=WRITER,
        commit_properties=carrying(positions),
        post_commithook_properties=NO_HOOKS,
    )


def rewrite(place: TableLocation, change: Callable[[DeltaTable, CommitProperties], _Result]) -> _Result:
    """Do what replaces files, on the newest version, until it is committed. Raises DeltaError when it never is.

    `change` is given the properties that its commit must carry. Appends do not hinder it, other rewriting does.
    """
    for attempt in range(TRIES):
        delta = opened(place)
        try:
            return change(delta, carrying({REWRITTEN: number(delta, REWRITTEN) + 1}))
        except (DeltaError, FileNotFoundError):
            if attempt == TRIES - 1:
                raise
            pause(attempt)
    raise AssertionError


def pause(attempt: int) -> None:
    """Wait a little longer each time, and never as long as a competitor does."""
    time.sleep(random.uniform(0.5, 1.0) * 0.02 * 2**attempt)
