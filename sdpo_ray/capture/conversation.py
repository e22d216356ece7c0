"""What a chat request says of itself: its prompt, and which user and conversation it belongs to.

Only what the client stated is recorded. Which earlier answer a request follows is found later, by content,
in `curate.sessionize`; nothing is guessed here, so strangers cannot be merged.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdpo_ray.capture.consent import consent_of
from sdpo_ray.capture.prompt import offered_tools, template_arguments, text_messages
from sdpo_ray.headers import CONVERSATION_ID
from sdpo_ray.records import Consent, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request as the client sent it. Made by `serve.routes`; read by `capture.recorder`."""

    turn_id: str
    user: str
    conversation_id: str
    consent: Consent
    messages: tuple[Message, ...]
    """Empty when the request is not a plain text chat: it is answered and not recorded."""
    tools: str = ""
    template_kwargs: str = ""
    """Both are JSON as on `records.Turn`."""
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
        conversation_id=str(headers.get(CONVERSATION_ID) or stated_id or ""),
        consent=consent_of(headers, metadata, default),
        messages=text_messages(body.get("messages")),
        tools=offered_tools(body.get("tools")),
        template_kwargs=template_arguments(body),
        started_at_s=now_s,
    )


def pseudonym(user: object, key: bytes) -> str:
    """Keyed digest of the caller's `user` field (HMAC-SHA256, RFC 2104); empty when nobody was named."""
    if not isinstance(user, str) or not user:
        return ""
    return hmac.new(key, user.encode(), hashlib.sha256).hexdigest()[:32]
