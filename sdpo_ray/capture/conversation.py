"""What a chat request says of itself: its messages, and which user and conversation it belongs to.

Only what the client stated is recorded. Which earlier answer a request follows is found later, by content,
in `curate.sessionize`; nothing is guessed here, so strangers cannot be merged.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdpo_ray.capture.consent import consent_of
from sdpo_ray.errors import DataError
from sdpo_ray.records import Consent, Message, Role

CONVERSATION_HEADER = "x-sdpo-conversation-id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request as the client sent it. Made by `serve.routes`; read by `capture.recorder`."""

    turn_id: str
    user: str
    conversation_id: str
    consent: Consent
    messages: tuple[Message, ...]
    """Empty when the request is not a plain text chat: it is answered and not recorded."""
    started_at_s: float


def read_request(
    body: Mapping[str, Any], headers: Mapping[str, str], *, turn_id: str, key: bytes, default: Consent, now_s: float
) -> Asked:
    """Read a chat-completion request. Raises DataError when it states its consent in unknown words."""
    metadata = body.get("metadata")
    stated_id = metadata.get("conversation_id") if isinstance(metadata, Mapping) else None
    return Asked(
        turn_id=turn_id,
        user=pseudonym(body.get("user"), key),
        conversation_id=str(headers.get(CONVERSATION_HEADER) or stated_id or ""),
        consent=consent_of(headers, metadata, default),
        messages=text_messages(body.get("messages")),
        started_at_s=now_s,
    )


def pseudonym(user: object, key: bytes) -> str:
    """Keyed digest of the caller's `user` field (HMAC-SHA256, RFC 2104); empty when nobody was named."""
    if not isinstance(user, str) or not user:
        return ""
    return hmac.new(key, user.encode(), hashlib.sha256).hexdigest()[:32]


def text_messages(messages: object) -> tuple[Message, ...]:
    """The messages of a plain text chat that ends with a user's; anything else gives an empty tuple."""
    if not isinstance(messages, list) or not messages:
        return ()
    try:
        read = tuple(_message(message) for message in messages)
    except (DataError, ValueError):
        return ()
    return read if read[-1].role is Role.USER else ()


def _message(message: object) -> Message:
    if not isinstance(message, dict) or message.get("tool_calls"):
        raise DataError("not a text message")
    content = message.get("content")
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        if any(not isinstance(part, str) for part in parts):
            raise DataError("not a text message")
        content = "\n".join(str(part) for part in parts)
    if not isinstance(content, str):
        raise DataError("not a text message")
    return Message(role=Role(str(message.get("role"))), content=content)
