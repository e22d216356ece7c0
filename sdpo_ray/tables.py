"""Records as Arrow rows, exactly: what is written is what is read back.

`curate` keeps these rows in its two tables and `distill` reads a snapshot through `read_interactions`,
with neither Ray nor Delta Lake.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from sdpo_ray.errors import DataError
from sdpo_ray.records import Interaction, Turn

SNAPSHOT_FILE = "interactions.parquet"
_Record = TypeVar("_Record", Turn, Interaction)

_TOOL_CALL = pa.struct([pa.field(name, pa.string()) for name in ("call_id", "name", "arguments")])
_MESSAGE = pa.struct(
    [
        pa.field("role", pa.string()),
        pa.field("content", pa.string()),
        pa.field("tool_calls", pa.list_(_TOOL_CALL)),
        pa.field("tool_call_id", pa.string()),
    ]
)
_SPAN = pa.struct([pa.field("policy_version", pa.int32()), pa.field("start", pa.int32()), pa.field("end", pa.int32())])
_SAMPLING = pa.struct(
    [
        pa.field("temperature", pa.float64()),
        pa.field("top_p", pa.float64()),
        pa.field("top_k", pa.int64()),
        pa.field("max_tokens", pa.int64()),
        pa.field("seed", pa.int64()),
    ]
)

TURN = pa.schema(
    [
        pa.field("turn_id", pa.string()),
        pa.field("tenant", pa.string()),
        pa.field("user", pa.string()),
        pa.field("conversation_id", pa.string()),
        pa.field("consent", pa.string()),
        pa.field("messages", pa.list_(_MESSAGE)),
        pa.field("tools", pa.string()),
        pa.field("template_kwargs", pa.string()),
        pa.field("response", pa.string()),
        pa.field("prompt_ids", pa.list_(pa.int32())),
        pa.field("response_ids", pa.list_(pa.int32())),
        pa.field("response_logprobs", pa.list_(pa.float64())),
        pa.field("version_spans", pa.list_(_SPAN)),
        pa.field("finish_reason", pa.string()),
        pa.field("sampling", _SAMPLING),
        pa.field("started_at_s", pa.float64()),
        pa.field("finished_at_s", pa.float64()),
    ]
)
"""One row a `Turn`."""

INTERACTION = pa.schema(
    [
        pa.field("interaction_id", pa.string()),
        pa.field("policy_version", pa.int32()),
        pa.field("conversation", pa.string()),
        pa.field("follow_up_at_s", pa.float64()),
        pa.field("follow_up_turn_id", pa.string()),
        pa.field("follow_up", pa.string()),
        pa.field("turn", pa.struct(list(TURN))),
    ]
)
"""One row an `Interaction`; `policy_version` repeats the turn's, so that a draw reads light columns alone."""


def turns_to_arrow(turns: Sequence[Turn]) -> pa.Table:
    """Rows with the schema `TURN`. Raises DataError for a value that the schema cannot hold."""
    return _to_arrow([msgspec.to_builtins(turn) for turn in turns], TURN)


def turns_from_arrow(rows: pa.Table) -> list[Turn]:
    """The turns of `rows`; columns beside `TURN` are ignored. Raises DataError."""
    return _from_arrow(rows.select(TURN.names), Turn)


def interactions_to_arrow(interactions: Sequence[Interaction]) -> pa.Table:
    """Rows with the schema `INTERACTION`. Raises DataError for a value that the schema cannot hold."""
    rows = [msgspec.to_builtins(each) | {"policy_version": each.turn.policy_version} for each in interactions]
    return _to_arrow(rows, INTERACTION)


def interactions_from_arrow(rows: pa.Table) -> list[Interaction]:
    """The interactions of `rows`. Raises DataError."""
    return _from_arrow(rows.select(INTERACTION.names).drop(["policy_version"]), Interaction)


def write_interactions(directory: Path, interactions: Sequence[Interaction]) -> str:
    """Write `interactions.parquet` into `directory`; return the sha256 of its rows.

    The digest is of the records in their order, not of the file, so another Parquet writer gives the same.
    """
    pq.write_table(interactions_to_arrow(interactions), directory / SNAPSHOT_FILE, compression="zstd")
    return rows_digest(interactions)


def read_interactions(directory: Path) -> list[Interaction]:
    """The interactions of a snapshot, in the order of training. `directory` is `Snapshot.path`.

    The caller has checked that the snapshot is ready. Raises FileNotFoundError, or DataError.
    """
    return interactions_from_arrow(pq.read_table(directory / SNAPSHOT_FILE))


def rows_digest(interactions: Sequence[Interaction]) -> str:
    """sha256 of the interactions in their order."""
    digest = hashlib.sha256()
    for interaction in interactions:
        row = msgspec.msgpack.encode(interaction)
        digest.update(len(row).to_bytes(8, "big"))
        digest.update(row)
    return digest.hexdigest()


def _to_arrow(rows: list[Any], schema: pa.Schema) -> pa.Table:
    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise DataError(f"a record does not fit its table: {error}") from error


def _from_arrow(rows: pa.Table, kind: type[_Record]) -> list[_Record]:
    try:
        return msgspec.convert(rows.to_pylist(), list[kind])  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        raise DataError(f"a row is not one {kind.__name__}: {error}") from error
