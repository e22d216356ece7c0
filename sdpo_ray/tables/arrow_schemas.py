"""Arrow schemas of the records, and lossless conversions between records and rows.

The tables hold these rows.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
import pyarrow as pa

from sdpo_ray.errors import DataError
from sdpo_ray.records import Feedback, Interaction, Turn

_Record = TypeVar("_Record", Turn, Feedback, Interaction)

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
        *(
            pa.field(name, pa.float64())
            for name in ("min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
        ),
        pa.field("constrained", pa.bool_()),
    ]
)
_KEYS = pa.struct([pa.field(name, pa.string()) for name in ("prompt", "parent", "continuation", "conversation")])
_REDACTIONS = pa.list_(pa.struct([pa.field("kind", pa.string()), pa.field("n", pa.int64())]))

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
        pa.field("response_calls", pa.list_(_TOOL_CALL)),
        pa.field("adapter", pa.string()),
        pa.field("started_at_s", pa.float64()),
        pa.field("finished_at_s", pa.float64()),
        pa.field("keys", _KEYS),
        pa.field("redactions", _REDACTIONS),
    ]
)
"""One row per `Turn`."""

FEEDBACK = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("feedback_id", "turn_id", "tenant", "user", "consent")),
        *(pa.field(name, pa.string()) for name in ("comment", "thumb", "edited")),
        pa.field("given_at_s", pa.float64()),
        pa.field("redactions", _REDACTIONS),
    ]
)
"""One row per `Feedback`."""

PENDING = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("turn_id", "prompt", "parent", "continuation")),
        pa.field("started_at_s", pa.float64()),
        pa.field("finished_at_s", pa.float64()),
        pa.field("turn_batch", pa.int64()),
    ]
)
"""One row per turn that may still be part of a pair: what pairing reads, and the batch of `turns` with the turn."""

LIGHT = pa.schema(
    [
        pa.field("policy_version", pa.int32()),
        pa.field("tenant", pa.string()),
        pa.field("user", pa.string()),
        pa.field("split", pa.int64()),
        pa.field("content", pa.string()),
    ]
)
"""Small columns that draws and admission limits read; they repeat fields of the turn, or are derived."""

INTERACTION = pa.schema(
    [
        pa.field("interaction_id", pa.string()),
        pa.field("conversation", pa.string()),
        pa.field("follow_up_at_s", pa.float64()),
        pa.field("follow_up_turn_id", pa.string()),
        pa.field("follow_up", pa.string()),
        pa.field("turn", pa.struct(list(TURN))),
        *LIGHT,
    ]
)
"""One row per `Interaction`."""


def turns_to_arrow(turns: Sequence[Turn]) -> pa.Table:
    """Rows with the schema `TURN`. Raises DataError for a value that the schema cannot hold."""
    return _to_arrow([msgspec.to_builtins(turn) for turn in turns], TURN)


def turns_from_arrow(rows: pa.Table) -> list[Turn]:
    """The turns of `rows`; columns beside `TURN` are ignored. Raises DataError."""
    return _from_arrow(rows.select(TURN.names), Turn)


def feedback_to_arrow(feedback: Sequence[Feedback]) -> pa.Table:
    """Rows with the schema `FEEDBACK`. Raises DataError for a value that the schema cannot hold."""
    return _to_arrow([msgspec.to_builtins(each) for each in feedback], FEEDBACK)


def feedback_from_arrow(rows: pa.Table) -> list[Feedback]:
    """The feedback of `rows`; columns beside `FEEDBACK` are ignored. Raises DataError."""
    return _from_arrow(rows.select(FEEDBACK.names), Feedback)


def interactions_to_arrow(interactions: Sequence[Interaction]) -> pa.Table:
    """Rows with the schema `INTERACTION`. Raises DataError for a value that the schema cannot hold."""
    return _to_arrow([msgspec.to_builtins(each) | _light(each) for each in interactions], INTERACTION)


def interactions_from_arrow(rows: pa.Table) -> list[Interaction]:
    """The interactions of `rows`. Raises DataError."""
    return _from_arrow(rows.select([name for name in INTERACTION.names if name not in LIGHT.names]), Interaction)


def split_of(conversation: str) -> int:
    """A hash of the conversation in [0, 2^32). Conversations below `held_out` * 2^32 are held out from training."""
    return int.from_bytes(hashlib.sha256(f"held-out {conversation}".encode()).digest()[:4], "big")


def content_of(interaction: Interaction) -> str:
    """Digest of (x, y, o), the tenant and the user: interactions of one user with the same text share it."""
    turn = interaction.turn
    fields = (turn.tenant, turn.user, turn.messages, turn.tools, turn.response, interaction.follow_up)
    return hashlib.sha256(msgspec.json.encode(fields)).hexdigest()[:32]


def _light(interaction: Interaction) -> dict[str, str | int]:
    turn = interaction.turn
    return {
        "policy_version": turn.policy_version,
        "tenant": turn.tenant,
        "user": turn.user,
        "split": split_of(interaction.conversation),
        "content": content_of(interaction),
    }


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
