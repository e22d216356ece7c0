"""Upkeep of a table that grows by small commits: few large files, a short log, nothing left over."""

import math

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import DeltaError

from sdpo_ray.tables.commits import MAINTAINED, NO_HOOKS, WRITER, commit_rows, opened, paths, rewrite
from sdpo_ray.tables.object_store import TableLocation
from sdpo_ray.tables.parquet_rewrite import taken_away, written
from sdpo_ray.tables.specs import BATCH, TableSpec

FILE_BYTES = 64 << 20
"""What small files are put together to: an erasure rewrites that much for one row."""


def maintain(place: TableLocation, kind: TableSpec, *, keep_files_h: float, expire_before_s: float | None) -> bool:
    """Compact, checkpoint and vacuum; False when another process is at it. Raises DeltaError."""
    delta = opened(place)
    try:
        commit_rows(delta, kind.schema.empty_table(), {MAINTAINED: delta.version() + 1})
    except DeltaError:
        return False
    known = set(paths(delta))
    if expire_before_s is not None:
        _expire(place, kind, expire_before_s)
    _compact(place, kind)
    delta = opened(place)
    # On disk before anything is removed that it replaces.
    place.sync([*(set(paths(delta)) - known), *place.log_names()])
    delta.create_checkpoint()
    place.sync(place.log_names())
    delta.cleanup_metadata()
    _vacuum(place, keep_files_h)
    return True


def _expire(place: TableLocation, kind: TableSpec, before_s: float) -> None:
    """Take out rows by time, which names nobody in Delta's log."""

    def change(delta: DeltaTable, carried: CommitProperties) -> None:
        delta.delete(
            f"{kind.time_column} < {before_s:.6f}",
            writer_properties=WRITER,
            commit_properties=carried,
            post_commithook_properties=NO_HOOKS,
        )

    rewrite(place, change)


def _compact(place: TableLocation, kind: TableSpec) -> None:
    """Put small files together, those of neighbouring batches.

    Delta's own OPTIMIZE carries no position (deltalake 1.6.6), and of two at once both are committed, which leaves
    every row there twice.
    """

    def change(delta: DeltaTable, carried: CommitProperties) -> None:
        together = [names for names in _neighbours(delta) if len(names) > 1]
        if together:
            delta.create_write_transaction(
                [
                    *taken_away((name for names in together for name in names), data_change=False),
                    *(each for names in together if (each := written(place, names, kind)) is not None),
                ],
                "append",
                delta.schema(),
                commit_properties=carried,
                post_commithook_properties=NO_HOOKS,
            )

    rewrite(place, change)


def _neighbours(delta: DeltaTable) -> list[list[str]]:
    """All data files in the order of their batches, as many together as make one large one."""
    together: list[list[str]] = []
    room = 0
    if delta.count():
        files = pa.table(delta.get_add_actions(flatten=True)).sort_by(f"min.{BATCH}")
        for name, size in zip(files["path"].to_pylist(), files["size_bytes"].to_pylist(), strict=True):
            if size > room:
                together.append([])
                room = FILE_BYTES
            together[-1].append(name)
            room -= size
    return together


def _vacuum(place: TableLocation, keep_files_h: float) -> None:
    keep_whole_h = math.ceil(keep_files_h)

    def change(delta: DeltaTable, carried: CommitProperties) -> None:
        # It replaces nothing, so it carries nothing; what it logs conflicts with an erasure all the same.
        delta.vacuum(
            retention_hours=keep_whole_h,
            dry_run=False,
            enforce_retention_duration=False,
            post_commithook_properties=NO_HOOKS,
            # Files that no commit names may belong to one under way, unless they are old.
            full=keep_whole_h > 0,
        )

    rewrite(place, change)
