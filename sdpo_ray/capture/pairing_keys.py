"""Keyed digests by which follow-ups are paired with answers, and by which the owner of a personal policy is found."""

import hashlib
import hmac
from collections.abc import Iterable, Sequence

import msgspec

from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.records import Message, PairingKeys, Role


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
