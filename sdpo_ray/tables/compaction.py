"""Maintenance of a table that grows by small commits: compact files, checkpoint and shorten the log, vacuum."""

import math

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import DeltaError

from sdpo_ray.tables.commits import MAINTAINED, NO_HOOKS, WRITER, commit_rows, opened, paths, rewrite
from sdpo_ray.tables.object_store import TableLocation
from sdpo_ray.tables.parquet_rewrite import remove_actions, rewritten
from sdpo_ray.tables.specs import BATCH, TableSpec

FILE_BYTES = 64 << 20
"""Target size of compacted files; also what an erasure rewrites for one row."""


def maintain(location: TableLocation, spec: TableSpec, *, keep_files_h: float, expire_before_s: float | None) -> bool:
    """Compact, checkpoint and vacuum the table; False when another process does so. Raises DeltaError.

    Files that were replaced more than `keep_files_h` hours ago are deleted. Rows of before `expire_before_s` (Unix
    time) are removed first, unless it is None.
    """
    delta = opened(location)
    try:
        commit_rows(delta, spec.schema.empty_table(), {MAINTAINED: delta.version() + 1})
    except DeltaError:
        return False
    known = set(paths(delta))
    if expire_before_s is not None:
        _expire(location, spec, expire_before_s)
    _compact(location, spec)
    delta = opened(location)
    # The new files must be on disk before the files they replace are deleted.
    location.sync([*(set(paths(delta)) - known), *location.log_names()])
    delta.create_checkpoint()
    location.sync(location.log_names())
    delta.cleanup_metadata()
    _vacuum(location, keep_files_h)
    return True


def _expire(location: TableLocation, spec: TableSpec, before_s: float) -> None:
    """Delete rows by time. The predicate, which Delta logs, identifies no user."""

    def change(delta: DeltaTable, carried: CommitProperties) -> None:
        delta.delete(
            f"{spec.time_column} < {before_s:.6f}",
            writer_properties=WRITER,
            commit_properties=carried,
            post_commithook_properties=NO_HOOKS,
        )

    rewrite(location, change)


def _compact(location: TableLocation, spec: TableSpec) -> None:
    """Combine small files of neighbouring batches into larger ones.

    Delta's OPTIMIZE cannot carry a position (deltalake 1.6.6): of two concurrent ones both commit, which duplicates
    every row.
    """

    def change(delta: DeltaTable, carried: CommitProperties) -> None:
        groups = [names for names in _neighbours(delta) if len(names) > 1]
        if groups:
            delta.create_write_transaction(
                [
                    *remove_actions((name for names in groups for name in names), data_change=False),
                    *(each for names in groups if (each := rewritten(location, names, spec)) is not None),
                ],
                "append",
                delta.schema(),
                commit_properties=carried,
                post_commithook_properties=NO_HOOKS,
            )

    rewrite(location, change)


def _neighbours(delta: DeltaTable) -> list[list[str]]:
    """All data files in the order of their batches, grouped so that each group makes one file of about FILE_BYTES."""
    groups: list[list[str]] = []
    room = 0
    if delta.count():
        files = pa.table(delta.get_add_actions(flatten=True)).sort_by(f"min.{BATCH}")
        for name, size in zip(files["path"].to_pylist(), files["size_bytes"].to_pylist(), strict=True):
            if size > room:
                groups.append([])
                room = FILE_BYTES
            groups[-1].append(name)
            room -= size
    return groups


def _vacuum(location: TableLocation, keep_files_h: float) -> None:
    keep_whole_h = math.ceil(keep_files_h)

    def change(delta: DeltaTable, carried: CommitProperties) -> None:
        # A vacuum replaces no rows, so it carries no position; its commit conflicts with an erasure nevertheless.
        delta.vacuum(
            retention_hours=keep_whole_h,
            dry_run=False,
            enforce_retention_duration=False,
            post_commithook_properties=NO_HOOKS,
            # Files that no commit names may belong to a commit in progress, unless they are old.
            full=keep_whole_h > 0,
        )

    rewrite(location, change)
