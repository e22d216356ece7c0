"""Parse records of conversation logs: WildChat, WildFeedback, OpenAI messages, plain triples. Pure.

A record that does not match its format is refused. Nothing is inferred that a log does not state: no language is
detected here, and missing times follow `datasets.log_fields.times_of`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sdpo_ray.datasets.log_fields import TIMES, json_of, mappings, stated, text_of, times_of
from sdpo_ray.errors import ConfigError, DataError
from sdpo_ray.records import Message, Role, ToolCall


class Format(StrEnum):
    WILDCHAT = "wildchat"
    """allenai/WildChat: `conversation`, a list of {role, content}, with `conversation_hash`, `language`, `toxic`."""
    WILDFEEDBACK = "wildfeedback"
    """microsoft/WildFeedback: `conversations`, a list of {from, value} (or `conversation` as above)."""
    OPENAI = "openai"
    """{messages: [{role, content, tool_calls, tool_call_id}], tools}."""
    TRIPLES = "triples"
    """{prompt, completion, user_response}, each a text or messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedConversation:
    """One record of a log. Made by `read_record`; read by `datasets.conversation_split`."""

    messages: tuple[Message, ...]
    times_s: tuple[float, ...]
    """Unix time of each message, non-decreasing."""
    key: str
    """The log's id of the conversation; empty if it has none."""
    user: str
    """Digest of the log's id of the user, 32 hex digits; empty if it has none."""
    language: str
    """As the log states it, in lower case; empty if it does not."""
    toxic: bool
    """Whether the log marks the record or a message as toxic."""
    tools: str
    """JSON as on a `Turn`."""
    template_kwargs: str
    """JSON as on a `Turn`."""
    last_only: bool
    """Whether only the last answer is an interaction, as in a triple."""


_KEYS = ("conversation_hash", "conversation_id", "session_id", "conversation")
_USERS = ("user", "user_id", "hashed_ip")
_LANGUAGES = ("language", "lang")
_PARTS = (
    "prompt",
    "completion",
    "user_response",
    "messages",
    "conversations",
    "tools",
    "chat_template_kwargs",
    "template_kwargs",
    "toxic",
)
FIELDS = frozenset((*_PARTS, *_KEYS, *_USERS, *_LANGUAGES, *TIMES))
"""Every key of a record that is read."""
_ROLES = {role.value: role for role in Role} | {
    "human": Role.USER,
    "gpt": Role.ASSISTANT,
    "chatgpt": Role.ASSISTANT,
    "developer": Role.SYSTEM,
}


def detect_format(record: Mapping[str, Any]) -> Format:
    """The format of a file, from its first record. Raises ConfigError if the keys match no format."""
    if {"prompt", "completion", "user_response"} <= record.keys():
        return Format.TRIPLES
    if "messages" in record:
        return Format.OPENAI
    if "conversations" in record:
        return Format.WILDFEEDBACK
    if "conversation" in record:
        hashed = "conversation_hash" in record or "conversation_id" in record
        return Format.WILDCHAT if hashed else Format.WILDFEEDBACK
    # Escaped: a log may contain terminal control sequences.
    keys = ", ".join(sorted(key[:40].encode("unicode_escape").decode() for key in record)[:12])
    raise ConfigError(f"the first record has none of the keys of a known format, only: {keys}; give --format")


def read_record(record: Mapping[str, Any], form: Format, *, number: int) -> LoggedConversation:
    """Parse the `number`-th record of an import. Raises DataError if it does not match the format."""
    raw: Sequence[Mapping[str, Any]]
    if form is Format.TRIPLES:
        raw = [
            *_listed(record.get("prompt"), Role.USER),
            *_one(record.get("completion"), Role.ASSISTANT),
            *_one(record.get("user_response"), Role.USER),
        ]
    elif form is Format.OPENAI:
        raw = mappings(record.get("messages"))
    else:
        raw = mappings(record.get("conversations") or record.get("conversation"))
    messages = tuple(map(_message, raw))
    if form is Format.TRIPLES and [each.role for each in messages[-2:]] != [Role.ASSISTANT, Role.USER]:
        raise DataError("a triple ends with an assistant's message and a user's")
    return LoggedConversation(
        messages=messages,
        times_s=times_of(record, raw, number),
        key=stated(record, _KEYS),
        user=hashlib.sha256(user.encode()).hexdigest()[:32] if (user := stated(record, _USERS)) else "",
        language=stated(record, _LANGUAGES).lower(),
        toxic=any(each.get("toxic") is True for each in (record, *raw)),
        tools=json_of(record.get("tools")),
        template_kwargs=json_of(record.get("chat_template_kwargs") or record.get("template_kwargs")),
        last_only=form is Format.TRIPLES,
    )


def _listed(value: object, role: Role) -> Sequence[Mapping[str, Any]]:
    """Messages of a part of a triple: a list of messages, one message, or a text."""
    if isinstance(value, str):
        return [{"role": role.value, "content": value}]
    return mappings([value] if isinstance(value, Mapping) else value)


def _one(value: object, role: Role) -> Sequence[Mapping[str, Any]]:
    listed = _listed(value, role)
    if len(listed) != 1:
        raise DataError("a completion and a user's response are one message each")
    return listed


def _message(raw: Mapping[str, Any]) -> Message:
    role = _ROLES.get(text_of(raw.get("role", raw.get("from"))).lower())
    if role is None:
        raise DataError("a message of no known role")
    calls = raw.get("tool_calls") or ()
    return Message(
        role=role,
        content=text_of(raw.get("content", raw.get("value"))),
        tool_calls=tuple(map(_call, mappings(calls))) if calls else (),
        tool_call_id=text_of(raw.get("tool_call_id")),
    )


def _call(raw: Mapping[str, Any]) -> ToolCall:
    function = raw.get("function")
    if not isinstance(function, Mapping):
        raise DataError("a tool call names no function")
    arguments = function.get("arguments")
    return ToolCall(
        call_id=text_of(raw.get("id")),
        name=text_of(function.get("name")),
        arguments=text_of(arguments) if arguments is None or isinstance(arguments, str) else json_of(arguments),
    )
