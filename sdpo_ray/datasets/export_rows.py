"""Convert interactions and feedback into rows for other trainers. Pure; the counterpart of `datasets.formats`.

Messages are OpenAI's. `interactions` are the importer's format `triples`, and TRL's prompt-completion; `preferences`
are TRL's for DPO, `labels` for KTO (https://huggingface.co/docs/trl/dataset_formats). `tools` and `template_kwargs`
are JSON text, since tools have no common Arrow type; TRL also reads `tools` as text.
"""

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any

import msgspec
import pyarrow as pa

from sdpo_ray.records import Feedback, Interaction, Message, Role, Thumb, Turn


class ExportKind(StrEnum):
    INTERACTIONS = "interactions"
    """(x, y, o): prompt, completion, user_response."""
    PREFERENCES = "preferences"
    """Answers that a user edited: prompt, chosen (as edited), rejected (as it was)."""
    LABELS = "labels"
    """Answers with a thumb: prompt, completion, label (up is true)."""


_TEXT, _TIME, _VERSION = pa.string(), pa.float64(), pa.int32()
_FUNCTION = pa.struct([pa.field("name", _TEXT), pa.field("arguments", _TEXT)])
_CALL = pa.struct([pa.field("id", _TEXT), pa.field("type", _TEXT), pa.field("function", _FUNCTION)])
_MESSAGES = pa.list_(
    pa.struct(
        [
            pa.field("role", _TEXT),
            pa.field("content", _TEXT),
            pa.field("tool_calls", pa.list_(_CALL)),
            pa.field("tool_call_id", _TEXT),
        ]
    )
)
_REDACTIONS = pa.list_(pa.struct([pa.field("kind", _TEXT), pa.field("n", pa.int64())]))
_OF_TURN = {
    "turn_id": _TEXT,
    "tenant": _TEXT,
    "user": _TEXT,
    "consent": _TEXT,
    "policy_version": _VERSION,
    "created": _TIME,
    "tools": _TEXT,
    "template_kwargs": _TEXT,
    "redactions": _REDACTIONS,
}
_OF_FEEDBACK = {"feedback_id": _TEXT, "given_at_s": _TIME}
_COLUMNS: dict[ExportKind, dict[str, pa.DataType]] = {
    ExportKind.INTERACTIONS: {
        "prompt": _MESSAGES,
        "completion": _MESSAGES,
        "user_response": _TEXT,
        "interaction_id": _TEXT,
        "follow_up_turn_id": _TEXT,
        "follow_up_at_s": _TIME,
        "conversation": _TEXT,
        **_OF_TURN,
    },
    ExportKind.PREFERENCES: {
        "prompt": _MESSAGES,
        "chosen": _MESSAGES,
        "rejected": _MESSAGES,
        **_OF_FEEDBACK,
        **_OF_TURN,
    },
    ExportKind.LABELS: {"prompt": _MESSAGES, "completion": _MESSAGES, "label": pa.bool_(), **_OF_FEEDBACK, **_OF_TURN},
}
SCHEMAS = {what: pa.schema(list(columns.items())) for what, columns in _COLUMNS.items()}
"""Columns of each export. Times are Unix seconds; `created` is the arrival of the prompt."""


def interaction_rows(interactions: Iterable[Interaction]) -> pa.Table:
    """Rows with prompt, completion and user_response."""
    rows = [
        _of_turn(each.turn)
        | {
            "prompt": _messages(each.turn.messages),
            "completion": _answer(each.turn.response),
            "user_response": each.follow_up,
            "interaction_id": each.interaction_id,
            "follow_up_turn_id": each.follow_up_turn_id,
            "follow_up_at_s": each.follow_up_at_s,
            "conversation": each.conversation,
        }
        for each in interactions
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS[ExportKind.INTERACTIONS])


def preference_rows(pairs: Iterable[tuple[Feedback, Turn]]) -> pa.Table:
    """Rows with prompt, chosen and rejected, from feedback that edits the answer of its turn."""
    rows = [
        _of_turn(turn)
        | _of_feedback(feedback)
        | {
            "prompt": _messages(turn.messages),
            "chosen": _answer(feedback.edited),
            "rejected": _answer(turn.response),
        }
        for feedback, turn in pairs
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS[ExportKind.PREFERENCES])


def label_rows(pairs: Iterable[tuple[Feedback, Turn]]) -> pa.Table:
    """Rows with prompt, completion and label, from feedback with a thumb on the answer of its turn."""
    rows = [
        _of_turn(turn)
        | _of_feedback(feedback)
        | {
            "prompt": _messages(turn.messages),
            "completion": _answer(turn.response),
            "label": feedback.thumb is Thumb.UP,
        }
        for feedback, turn in pairs
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS[ExportKind.LABELS])


def json_lines(rows: pa.Table) -> Iterator[bytes]:
    """Each row as a line of JSON, without null fields."""
    for row in rows.to_pylist():
        yield msgspec.json.encode(_without_nulls(row)) + b"\n"


def _of_turn(turn: Turn) -> dict[str, object]:
    return {
        "turn_id": turn.turn_id,
        "tenant": turn.tenant,
        "user": turn.user,
        "consent": turn.consent.value,
        "policy_version": turn.policy_version,
        "created": turn.started_at_s,
        "tools": turn.tools or None,
        "template_kwargs": turn.template_kwargs or None,
        "redactions": msgspec.to_builtins(turn.redactions),
    }


def _of_feedback(feedback: Feedback) -> dict[str, object]:
    return {"feedback_id": feedback.feedback_id, "given_at_s": feedback.given_at_s}


def _answer(text: str) -> list[dict[str, object]]:
    return _messages([Message(role=Role.ASSISTANT, content=text)])


def _messages(messages: Sequence[Message]) -> list[dict[str, object]]:
    return [
        {
            "role": message.role.value,
            "content": message.content,
            "tool_calls": [
                {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in message.tool_calls
            ]
            or None,
            "tool_call_id": message.tool_call_id or None,
        }
        for message in messages
    ]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
