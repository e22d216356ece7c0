"""Commits to a Delta table, and the positions they carry.

A commit carries positions as Delta `txn` actions (Delta protocol, "Transaction Identifiers"): of two commits that carry
the same position and started from the same version, the second fails. The constants below are such positions, too.
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
"""Number of the last commit of rows, the batch."""
REWRITTEN = "table.rewrite"
"""Grows with every commit that replaces files, so that two of them cannot both succeed from one version."""
MAINTAINED = "table.maintained"
"""Delta version at which the table was last compacted."""
SCHEMA = "table.schema"
"""Version of the table's schema, `specs.SCHEMA_VERSION`."""

ROWS_PER_GROUP = 4096
"""Size of a Parquet row group: the unit that a reader skips or decodes."""
WRITER = WriterProperties(compression="ZSTD", max_row_group_size=ROWS_PER_GROUP)
NO_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
"""Only `tables.compaction` makes checkpoints: it syncs them before it removes the log entries they replace."""
ATTEMPTS = 8
_Result = TypeVar("_Result")


def opened(location: TableLocation) -> DeltaTable:
    """The newest version of the table. Retries, since maintenance may be removing old log entries at that moment."""
    for attempt in range(ATTEMPTS):
        try:
            return DeltaTable(location.uri)
        except DeltaError:
            if attempt == ATTEMPTS - 1:
                raise
            pause(attempt)
    raise AssertionError


def paths(delta: DeltaTable) -> list[str]:
    """Names of the data files of this version, relative to the table."""
    names: list[str] = pa.table(delta.get_add_actions())["path"].to_pylist()
    return names


def number(delta: DeltaTable, name: str) -> int:
    """The position `name` as of this version; 0 when it was never committed."""
    position: int | None = delta.transaction_version(name)
    return position or 0


def carrying(positions: Mapping[str, int]) -> CommitProperties:
    """Properties of a commit that carries these positions."""
    return CommitProperties(app_transactions=[Transaction(name, position) for name, position in positions.items()])


def commit_rows(delta: DeltaTable, rows: pa.Table, positions: Mapping[str, int]) -> None:
    """Commit rows (any number, also none) and positions at once. Raises DeltaError, OSError."""
    write_deltalake(
        delta,
        rows,
        mode="append",
        writer_properties=WRITER,
        commit_properties=carrying(positions),
        post_commithook_properties=NO_HOOKS,
    )


def rewrite(location: TableLocation, change: Callable[[DeltaTable, CommitProperties], _Result]) -> _Result:
    """Call `change`, which replaces files, on the newest version until its commit succeeds; return its result.

    `change` gets the properties that its commit must carry. Concurrent appends do not make it fail, concurrent rewrites
    do. Raises DeltaError or FileNotFoundError of the last attempt.
    """
    for attempt in range(ATTEMPTS):
        delta = opened(location)
        try:
            return change(delta, carrying({REWRITTEN: number(delta, REWRITTEN) + 1}))
        except (DeltaError, FileNotFoundError):
            if attempt == ATTEMPTS - 1:
                raise
            pause(attempt)
    raise AssertionError


def pause(attempt: int) -> None:
    """Sleep with exponential backoff and jitter: between 0.01 * 2^attempt and 0.02 * 2^attempt seconds."""
    time.sleep(random.uniform(0.5, 1.0) * 0.02 * 2**attempt)
