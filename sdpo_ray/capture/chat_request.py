"""What a chat request says of itself: its prompt, and which user and conversation it belongs to.

Only what the client stated is recorded. Which earlier answer a request follows is found later, by keyed digests of
the words, in `curate.sessionize`; nothing is guessed here, so strangers cannot be merged.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from sdpo_ray.capture.consent import consent_of
from sdpo_ray.capture.prompt import offered_tools, template_arguments, text_messages
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.headers import CONVERSATION_ID
from sdpo_ray.records import Consent, Message, PairingKeys, Role


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Asked:
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
) -> Asked:
    """Read a chat-completion request. Raises DataError when it states its consent in unknown words."""
    metadata = body.get("metadata")
    stated_id = metadata.get("conversation_id") if isinstance(metadata, Mapping) else None
    user = body.get("user")
    return Asked(
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


def pairing_keys(
    *, key: bytes, tenant: str, user: str, conversation_id: str, messages: Sequence[Message], response: str
) -> PairingKeys:
    """The digests of one answered request. `user`, `conversation_id` and all words are the client's own.

    Raises UnicodeEncodeError for text that has no UTF-8 form.
    """
    who = (tenant, user, conversation_id)
    words = [msgspec.json.encode(message) for message in messages]
    answer = msgspec.json.encode(Message(role=Role.ASSISTANT, content=response))
    said = _digest(key, "said", *who)
    _add(said, words[:-1])
    reacts = len(messages) > 1 and messages[-1].role is Role.USER and messages[-2].role is Role.ASSISTANT
    parent = _hex(said) if reacts else ""
    _add(said, words[-1:])
    prompt = _hex(said)
    _add(said, [answer])
    first = next((index for index, message in enumerate(messages) if message.role is Role.USER), len(messages))
    conversation = _digest(key, "conversation" if conversation_id else "opening", *who)
    if not conversation_id:
        _add(conversation, words[: first + 1])
    return PairingKeys(prompt=prompt, parent=parent, continuation=_hex(said), conversation=_hex(conversation))


def keyed_digest(key: bytes, *fields: str) -> str:
    """32 hex digits of HMAC-SHA256 over the fields, each behind its length: no two lists of fields look alike."""
    return _hex(_digest(key, *fields))


def owner_digest(key: bytes, *, tenant: str, pseudonym: str) -> str:
    """Whose a personal policy is: a user of a tenant, or where `pseudonym` is empty the whole tenant.

    `key` is `Pseudonyms.pairing_key`. Those who learn from rows know nobody by another name; serving asks `owners`.
    """
    return keyed_digest(key, "owner", tenant, pseudonym)


def owners(pseudonyms: Pseudonyms, *, tenant: str, user: str) -> tuple[str, ...]:
    """Whose personal policy may answer a caller: the first owner that has one. `user` is as the client named them.

    The user under each pseudonym, the newest first, and the whole tenant last. So what was learned under an earlier key
    answers until there is something under the new one.
    """
    names = (*pseudonyms.all_of(user), "")
    return tuple(owner_digest(pseudonyms.pairing_key, tenant=tenant, pseudonym=name) for name in names)


def _digest(key: bytes, *fields: str) -> hmac.HMAC:
    digest = hmac.new(key, digestmod=hashlib.sha256)
    _add(digest, (field.encode() for field in fields))
    return digest


def _add(digest: hmac.HMAC, fields: Iterable[bytes]) -> None:
    for field in fields:
        digest.update(len(field).to_bytes(8, "big"))
        digest.update(field)


def _hex(digest: hmac.HMAC) -> str:
    return digest.hexdigest()[:32]
