"""Erasure of rows: delete them from a table, then purge them from the disk.

Rows are deleted by rewriting their files without them. Delta's own DELETE would do so, too, but logs its predicate: the
ids of erased rows would stay in the log for as long as it keeps entries. Log entries are not removed early either: a
paused committer could then reuse their version number unnoticed, and its rows would be lost.
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
from sdpo_ray.tables.parquet_rewrite import remove_actions, rewritten
from sdpo_ray.tables.specs import TableSpec

_FILE = "__filename"
_FILES_PER_COMMIT = 64
_FENCE_ATTEMPTS = 100


def delete(location: TableLocation, spec: TableSpec, ids: Collection[str]) -> int:
    """Delete the rows with these ids from the newest version; return their number. Raises DeltaError."""
    named = pa.array(sorted(set(ids)), pa.string())
    removed = 0

    def without(rows: pa.RecordBatch) -> pa.RecordBatch:
        return rows.filter(pc.invert(pc.is_in(rows[spec.id_column], value_set=named)))

    def change(delta: DeltaTable, carried: CommitProperties) -> bool:
        nonlocal removed
        rows = delta.to_pyarrow_dataset(filesystem=location.filesystem, schema=spec.schema).to_table(
            columns=[_FILE], filter=ds.field(spec.id_column).isin(named), use_threads=False
        )
        holding = sorted(set(rows[_FILE].to_pylist()))
        current = holding[:_FILES_PER_COMMIT]
        if current:
            replacements = [rewritten(location, [name], spec, keep=without) for name in current]
            delta.create_write_transaction(
                [*remove_actions(current, data_change=True), *(each for each in replacements if each is not None)],
                "append",
                delta.schema(),
                commit_properties=carried,
                post_commithook_properties=NO_HOOKS,
            )
            removed += sum(name in current for name in rows[_FILE].to_pylist())
        return len(holding) > len(current)

    while rewrite(location, change):
        continue
    return removed


def purge(location: TableLocation, spec: TableSpec) -> None:
    """Delete every data file that the newest version does not name. Raises DeltaError.

    A file that no commit names may belong to a commit in progress. So an empty commit (the fence) follows the listing
    of files: a commit that started before the fence fails.
    """
    listed = [name for name in location.names() if not name.startswith(LOG)]
    held = set(paths(_fence(location, spec)))
    # The new files must be on disk before the files they replace are deleted.
    location.sync([*held, *location.log_names()])
    location.remove(name for name in listed if name not in held)


def _fence(location: TableLocation, spec: TableSpec) -> DeltaTable:
    """Commit no rows, so that every commit in progress conflicts and fails; return the version after that."""
    for attempt in range(_FENCE_ATTEMPTS):
        delta = opened(location)
        try:
            fence = {name: number(delta, name) + 1 for name in (APPENDED, REWRITTEN)}
            commit_rows(delta, spec.schema.empty_table(), fence)
        except DeltaError:
            if attempt == _FENCE_ATTEMPTS - 1:
                raise
            pause(attempt % 3)
        else:
            return opened(location)
    raise AssertionError
