"""Keyed digests that pair follow-ups with answers, and that identify the owners of personal policies."""

import hashlib
import hmac
from collections.abc import Iterable, Sequence

import msgspec

from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.records import Message, PairingKeys, Role


def pairing_keys(
    *, key: bytes, tenant: str, user: str, conversation_id: str, messages: Sequence[Message], response: str
) -> PairingKeys:
    """The digests of one answered request, from the text before redaction and the user's name as the client sent it.

    `key` is `Pseudonyms.pairing_key`. Raises UnicodeEncodeError for text without a UTF-8 form.
    """
    caller = (tenant, user, conversation_id)
    encoded = [msgspec.json.encode(message) for message in messages]
    answer = msgspec.json.encode(Message(role=Role.ASSISTANT, content=response))
    history = _digest(key, "said", *caller)
    _add(history, encoded[:-1])
    reacts = len(messages) > 1 and messages[-1].role is Role.USER and messages[-2].role is Role.ASSISTANT
    parent = _hex(history) if reacts else ""
    _add(history, encoded[-1:])
    prompt = _hex(history)
    _add(history, [answer])
    first = next((index for index, message in enumerate(messages) if message.role is Role.USER), len(messages))
    conversation = _digest(key, "conversation" if conversation_id else "opening", *caller)
    if not conversation_id:
        _add(conversation, encoded[: first + 1])
    return PairingKeys(prompt=prompt, parent=parent, continuation=_hex(history), conversation=_hex(conversation))


def keyed_digest(key: bytes, *fields: str) -> str:
    """32 hex digits of HMAC-SHA256 over the fields. Each field follows its length, so the encoding is unambiguous."""
    return _hex(_digest(key, *fields))


def owner_digest(key: bytes, *, tenant: str, pseudonym: str) -> str:
    """Owner of a personal policy: a user of a tenant, or the whole tenant if `pseudonym` is empty.

    `key` is `Pseudonyms.pairing_key`. For users as the tables know them, by pseudonym; serving uses `owners`.
    """
    return keyed_digest(key, "owner", tenant, pseudonym)


def owners(pseudonyms: Pseudonyms, *, tenant: str, user: str) -> tuple[str, ...]:
    """Owners whose personal policy may answer a request; the first that has one does. `user` is the client's own name.

    The user under each pseudonym, newest first, then the whole tenant. So after a key rotation, the policy of the old
    pseudonym answers until the new one has a policy.
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
