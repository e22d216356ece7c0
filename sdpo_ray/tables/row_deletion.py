"""Erasure: rows are taken out of a table, then off the disk.

Rows are taken out by writing their files anew without them. Delta's own DELETE would do that, too, but it logs its
predicate: the ids of those who asked to be forgotten would stay in the log for as long as it keeps entries.
Entries are not removed early either: a committer that was paused could fill the gap unseen, and its rows be lost.
"""

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import DeltaError

from sdpo_ray.tables.commits import (
    APPENDED,
    NO_HOOKS,
    REWRITTEN,
    commit_rows,
    number,
    opened,
    paths,
    pause,
    rewrite,
)
from sdpo_ray.tables.object_store import LOG, TableLocation
from sdpo_ray.tables.parquet_rewrite import taken_away, written
from sdpo_ray.tables.specs import TableSpec

_FILE = "__filename"
_FILES_A_COMMIT = 64
_FENCE_TRIES = 100


def delete(place: TableLocation, kind: TableSpec, ids: Collection[str]) -> int:
    """Take rows out by id; their number. Raises DeltaError."""
    named = pa.array(sorted(set(ids)), pa.string())
    removed = 0

    def without(rows: pa.RecordBatch) -> pa.RecordBatch:
        return rows.filter(pc.invert(pc.is_in(rows[kind.id_column], value_set=named)))

    def change(delta: DeltaTable, carried: CommitProperties) -> bool:
        nonlocal removed
        rows = delta.to_pyarrow_dataset(filesystem=place.filesystem, schema=kind.schema).to_table(
            columns=[_FILE], filter=ds.field(kind.id_column).isin(named), use_threads=False
        )
        holding = sorted(set(rows[_FILE].to_pylist()))
        now = holding[:_FILES_A_COMMIT]
        if now:
            anew = [written(place, [name], kind, keep=without) for name in now]
            delta.create_write_transaction(
                [*taken_away(now, data_change=True), *(each for each in anew if each is not None)],
                "append",
                delta.schema(),
                commit_properties=carried,
                post_commithook_properties=NO_HOOKS,
            )
            removed += sum(name in now for name in rows[_FILE].to_pylist())
        return len(holding) > len(now)

    while rewrite(place, change):
        continue
    return removed


def purge(place: TableLocation, kind: TableSpec) -> None:
    """Remove every file that the table does not hold any more, or never did. Raises DeltaError.

    A file that no commit names may belong to one under way. So an empty commit is made after the files were listed:
    whoever began before it cannot commit behind it.
    """
    listed = [name for name in place.names() if not name.startswith(LOG)]
    held = set(paths(_fence(place, kind)))
    # On disk before anything is removed that it replaces.
    place.sync([*held, *place.log_names()])
    place.remove(name for name in listed if name not in held)


def _fence(place: TableLocation, kind: TableSpec) -> DeltaTable:
    """Commit nothing, in the place of all who are about to commit; the version that holds from then on."""
    for attempt in range(_FENCE_TRIES):
        delta = opened(place)
        try:
            fence = {name: number(delta, name) + 1 for name in (APPENDED, REWRITTEN)}
            commit_rows(delta, kind.schema.empty_table(), fence)
        except DeltaError:
            if attempt == _FENCE_TRIES - 1:
                raise
            pause(attempt % 3)
        else:
            return opened(place)
    raise AssertionError
