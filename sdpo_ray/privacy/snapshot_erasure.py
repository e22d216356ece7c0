"""Removal of interactions from snapshots.

`snapshot.json` keeps the ids and the digest of the rows as they were drawn: they record what a past update learned
from, which cannot be undone. `erased.json` lists the rows that were removed; `read_interactions` skips them.
"""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from sdpo_ray.io.files import fsync_directory, write_json
from sdpo_ray.tables.snapshot_files import ERASED_FILE, SNAPSHOT_FILE, ErasedRow, read_erased

_ASIDE = f".{SNAPSHOT_FILE}.aside"


def snapshots_under(root: Path) -> Iterator[Path]:
    """Every directory with rows of a snapshot, held-out rows included, in the order of their names.

    Includes unsealed directories, but not the hidden ones that a draw is writing.
    """
    for path in sorted(root.rglob(SNAPSHOT_FILE)):
        if not any(part.startswith(".") for part in path.relative_to(root).parts):
            yield path.parent


def rows_of(directory: Path, users: Collection[tuple[str, str]], source_ids: Collection[str]) -> list[str]:
    """Ids of the interactions there of these users, or whose turn, follow-up or comment is in `source_ids`."""
    rows = _read_columns(directory, "interaction_id", "follow_up_turn_id")
    return list(rows["interaction_id"].filter(_theirs(rows, users, source_ids)).to_pylist())


def users_of(directory: Path) -> Counter[tuple[str, str]]:
    """Interactions of a snapshot by tenant and pseudonym; all anonymous users of a tenant are counted together."""
    rows = _read_columns(directory)
    return Counter(zip(rows["tenant"].to_pylist(), rows["user"].to_pylist(), strict=True))


def erased_by(root: Path, erasure_ids: Collection[str]) -> frozenset[str]:
    """Ids of the interactions that these erasures removed from snapshots under `root`."""
    rows = (row for directory in snapshots_under(root) for row in read_erased(directory))
    return frozenset(row.interaction_id for row in rows if row.erasure_id in erasure_ids)


def rewrite(directory: Path, ids: Collection[str], *, erasure_id: str) -> None:
    """Remove these interactions from the snapshot in `directory`.

    Interrupted after `erased.json` was written, it leaves rows that no update reads; a repetition removes them.
    """
    path = directory / SNAPSHOT_FILE
    rows = pq.read_table(path)
    gone = pc.is_in(rows["interaction_id"], value_set=pa.array(ids, pa.string()))
    known = read_erased(directory)
    names = {row.interaction_id for row in known}
    now_s = time.time()
    erased = [
        ErasedRow(interaction_id=row["interaction_id"], digest=_digest(row), erasure_id=erasure_id, at_s=now_s)
        for row in rows.filter(gone).to_pylist()
        if row["interaction_id"] not in names
    ]
    write_json(directory / ERASED_FILE, (*known, *erased))
    aside = directory / _ASIDE
    pq.write_table(rows.filter(pc.invert(gone)), aside, compression="zstd")
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)
    fsync_directory(directory)


def _read_columns(directory: Path, *names: str) -> pa.Table:
    """These columns, and the turn's id, tenant and user."""
    of_turn = {name: ds.field("turn", name) for name in ("turn_id", "tenant", "user")}
    rows = ds.dataset(directory / SNAPSHOT_FILE, format="parquet")
    return rows.to_table(columns={name: ds.field(name) for name in names} | of_turn, use_threads=False)


def _theirs(rows: pa.Table, users: Collection[tuple[str, str]], source_ids: Collection[str]) -> pa.Array:
    ids = pa.array(source_ids, pa.string())
    found = pc.is_in(rows["turn_id"], value_set=ids)
    for name in ("interaction_id", "follow_up_turn_id"):
        found = pc.or_(found, pc.is_in(rows[name], value_set=ids))
    for tenant, user in users:
        found = pc.or_(found, pc.and_(pc.equal(rows["tenant"], tenant), pc.equal(rows["user"], user)))
    return found


def _digest(row: object) -> str:
    return hashlib.sha256(msgspec.msgpack.encode(row, order="sorted")).hexdigest()
