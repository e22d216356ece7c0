"""Snapshots against erasure: one that holds an erased user's rows is written again without them.

The record beside it keeps the ids and the digest of what was drawn then: they say what a past update learned from,
which cannot be undone. `erased.json` says what is missing; `tables.read_interactions` passes over it.
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
from sdpo_ray.tables.arrow_schemas import ERASED_FILE, SNAPSHOT_FILE, ErasedRow, read_erased

_ASIDE = f".{SNAPSHOT_FILE}.aside"


def snapshots_under(root: Path) -> Iterator[Path]:
    """Every directory with the rows of a snapshot, the held-out ones of an import included; oldest name first.

    Also one that was never sealed, but not the draft of somebody who is at work.
    """
    for path in sorted(root.rglob(SNAPSHOT_FILE)):
        if not any(part.startswith(".") for part in path.relative_to(root).parts):
            yield path.parent


def rows_of(directory: Path, users: Collection[tuple[str, str]], said: Collection[str]) -> list[str]:
    """Ids of the interactions there whose user is one of these, or that come from a turn or feedback in `said`."""
    rows = _light(directory, "interaction_id", "follow_up_turn_id")
    return list(rows["interaction_id"].filter(_theirs(rows, users, said)).to_pylist())


def users_of(directory: Path) -> Counter[tuple[str, str]]:
    """How many interactions of a snapshot each user has, by tenant and pseudonym; anonymous ones are one."""
    rows = _light(directory)
    return Counter(zip(rows["tenant"].to_pylist(), rows["user"].to_pylist(), strict=True))


def erased_by(root: Path, erasure_ids: Collection[str]) -> frozenset[str]:
    """Ids of the interactions that these erasures took out of snapshots under `root`."""
    rows = (row for directory in snapshots_under(root) for row in read_erased(directory))
    return frozenset(row.interaction_id for row in rows if row.erasure_id in erasure_ids)


def rewrite(directory: Path, ids: Collection[str], *, erasure_id: str) -> None:
    """Remove these interactions.

    Whoever is killed in here leaves rows that no update learns from, and is to come again.
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


def _light(directory: Path, *names: str) -> pa.Table:
    """These columns, and the id, tenant and user of the turn: snapshots of earlier versions have no others of it."""
    of_turn = {name: ds.field("turn", name) for name in ("turn_id", "tenant", "user")}
    rows = ds.dataset(directory / SNAPSHOT_FILE, format="parquet")
    return rows.to_table(columns={name: ds.field(name) for name in names} | of_turn, use_threads=False)


def _theirs(rows: pa.Table, users: Collection[tuple[str, str]], said: Collection[str]) -> pa.Array:
    ids = pa.array(said, pa.string())
    found = pc.is_in(rows["turn_id"], value_set=ids)
    for name in ("interaction_id", "follow_up_turn_id"):
        found = pc.or_(found, pc.is_in(rows[name], value_set=ids))
    for tenant, user in users:
        found = pc.or_(found, pc.and_(pc.equal(rows["tenant"], tenant), pc.equal(rows["user"], user)))
    return found


def _digest(row: object) -> str:
    return hashlib.sha256(msgspec.msgpack.encode(row, order="sorted")).hexdigest()
