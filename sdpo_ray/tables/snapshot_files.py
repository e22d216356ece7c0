"""Files of a snapshot: its interactions as Parquet, and the list of rows that were erased since.

Reading them needs neither Ray nor Delta Lake.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow.parquet as pq

from sdpo_ray.errors import DataError
from sdpo_ray.records import Interaction
from sdpo_ray.tables.arrow_schemas import interactions_from_arrow, interactions_to_arrow

SNAPSHOT_FILE = "interactions.parquet"
ERASED_FILE = "erased.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErasedRow:
    """Remainder of an erased row of a snapshot. Made by `privacy.snapshot_erasure`; read by `jobs.lineage`."""

    interaction_id: str
    digest: str
    """SHA-256 of the row as MessagePack with sorted keys, to recognise the row in a backup."""
    erasure_id: str
    """Of the `Tombstone` in `erasures.json`."""
    at_s: float
    """Unix time."""


def write_interactions(directory: Path, interactions: Sequence[Interaction]) -> str:
    """Write `interactions.parquet` into `directory`; return the SHA-256 of the interactions (`rows_digest`).

    The digest covers the records in their order, not the file, so it does not depend on the Parquet writer.
    """
    pq.write_table(interactions_to_arrow(interactions), directory / SNAPSHOT_FILE, compression="zstd")
    return rows_digest(interactions)


def read_interactions(directory: Path) -> list[Interaction]:
    """The interactions of a snapshot, in the order of training, without those that were erased since.

    `directory` is `Snapshot.path`; call `io.files.require_ready` first. Raises FileNotFoundError or DataError.
    """
    erased = {row.interaction_id for row in read_erased(directory)}
    rows = interactions_from_arrow(pq.read_table(directory / SNAPSHOT_FILE))
    return [each for each in rows if each.interaction_id not in erased]


def read_erased(directory: Path) -> tuple[ErasedRow, ...]:
    """Rows that were erased from a snapshot since it was drawn. Raises DataError."""
    path = directory / ERASED_FILE
    if not path.exists():
        return ()
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[ErasedRow, ...])
    except msgspec.DecodeError as error:
        raise DataError(f"{path} is not a list of erased rows: {error}") from error


def rows_digest(interactions: Sequence[Interaction]) -> str:
    """SHA-256 of the interactions in their order, as hexadecimal."""
    digest = hashlib.sha256()
    for interaction in interactions:
        row = msgspec.msgpack.encode(interaction)
        digest.update(len(row).to_bytes(8, "big"))
        digest.update(row)
    return digest.hexdigest()
