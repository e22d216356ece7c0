"""What a chat request says of itself: its prompt, and which user and conversation it belongs to.

Only what the client stated is recorded. Which earlier answer a request follows is found later, by keyed digests of
the words, in `curate.pairing`; nothing is guessed here, so strangers cannot be merged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdpo_ray.capture.consent import consent_of
from sdpo_ray.capture.prompt import offered_tools, template_arguments, text_messages
from sdpo_ray.headers import CONVERSATION_ID
from sdpo_ray.records import Consent, Message


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ChatRequest:
    """One request as the client sent it. Made by `serve.api.routes`; read by `capture.recorder`.

    Nothing of it is redacted yet, so it does not print.
    """

    turn_id: str
    tenant: str
    user: str
    """As the client named them; empty where it named nobody."""
    conversation_id: str
    """As the client sent it; empty where it sent none."""
    consent: Consent
    messages: tuple[Message, ...]
    """Empty when the request is not a plain text chat: it is answered and not recorded."""
    tools: str = ""
    template_kwargs: str = ""
    """Both are JSON as on `records.Turn`."""
    started_at_s: float


def read_request(
    body: Mapping[str, Any], headers: Mapping[str, str], *, turn_id: str, tenant: str, default: Consent, now_s: float
) -> ChatRequest:
    """Read a chat-completion request. Raises DataError when it states its consent in unknown words."""
    metadata = body.get("metadata")
    stated_id = metadata.get("conversation_id") if isinstance(metadata, Mapping) else None
    user = body.get("user")
    return ChatRequest(
        turn_id=turn_id,
        tenant=tenant,
        user=user if isinstance(user, str) else "",
        conversation_id=str(headers.get(CONVERSATION_ID) or stated_id or ""),
        consent=consent_of(headers, metadata, default),
        messages=text_messages(body.get("messages")),
        tools=offered_tools(body.get("tools")),
        template_kwargs=template_arguments(body),
        started_at_s=now_s,
    )
