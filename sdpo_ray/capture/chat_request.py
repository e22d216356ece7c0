"""Read a chat request: its prompt, and the user, conversation and consent that the client states.

Nothing is inferred here, so different users cannot be merged. The earlier answer that a request follows is found later,
in `curate.pairing`, by keyed digests of the text.
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
    """One chat request as the client sent it. Made by `read_request`; read by `capture.recorder` and `serve`.

    It is not redacted yet, so its repr is disabled.
    """

    turn_id: str
    tenant: str
    user: str
    """The request's field `user`; empty for an anonymous user."""
    conversation_id: str
    """As the client sent it; empty if it sent none."""
    consent: Consent
    messages: tuple[Message, ...]
    """Empty when the request is not a plain text chat; such a request is answered but not recorded."""
    tools: str = ""
    template_kwargs: str = ""
    """Both are JSON as in `records.Turn`; empty for none."""
    started_at_s: float
    """Unix time."""


def read_request(
    body: Mapping[str, Any], headers: Mapping[str, str], *, turn_id: str, tenant: str, default: Consent, now_s: float
) -> ChatRequest:
    """Read the body and headers of a chat-completion request; `now_s` is Unix time.

    `default` is the tenant's consent, used when the request states none. Raises DataError for an unknown consent.
    """
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
