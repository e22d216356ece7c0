"""Routes a share of conversations to a candidate while `canary.json` names one.

    canary   the application `canary` answers the share's chats, and the champion where that application fails
    shadow   the champion answers every chat, and the candidate gets copies of the share's

A keyed digest of its pairing key decides a conversation, so it stays with one policy over all its turns and on every
replica; the next candidate draws another share. When the file is removed, the champion answers all chats at once. Users
with a personal policy take no part.
"""

import asyncio
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx
from starlette.datastructures import Headers

from sdpo_ray.capture.chat_request import ChatRequest
from sdpo_ray.capture.pairing_keys import keyed_digest, owners, pairing_keys
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.config import Run
from sdpo_ray.errors import DataError
from sdpo_ray.headers import CONSENT, CONVERSATION_ID, TENANT
from sdpo_ray.io.files import read_json
from sdpo_ray.io.watched_file import WatchedFile
from sdpo_ray.records import Canary
from sdpo_ray.telemetry import Counters
from serve.asgi import Receive, Scope, Send
from serve.canary.proxy import ChatProxy, UpstreamError
from serve.canary.shadow import ShadowCopies
from serve.gateway.auth import private_key
from serve.request_context import ChatContext

_FORWARDED = (CONVERSATION_ID, "x-request-id", "traceparent", "tracestate")


class CanaryRouter:
    """`ChatRouter` to the application `canary`. `counters`: `candidate`, or `champion.<why>` where it failed."""

    def __init__(self, run: Run, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        layout = run.layout
        key = private_key(layout.canary_key).decode()
        # The champion needs the other half, where the candidate does not answer in time.
        first_byte_s = run.serve.request_timeout_s / 2
        proxy = ChatProxy(f"{run.serve.url}/canary", key, first_byte_s=first_byte_s, transport=transport)
        self.counters = Counters.empty()
        self._layout = layout
        self._proxy = proxy
        self._shadow = ShadowCopies(proxy, self.counters)
        self._pseudonyms = WatchedFile(layout.pseudonym_keys, Pseudonyms.load)
        self._personal = run.serve.adapters > 0
        self._pointer = WatchedFile(layout.canary_pointer, _read_canary, keep_last=False)

    async def take(self, chat: ChatContext, body: bytes, scope: Scope, receive: Receive, send: Send) -> bool:
        """Return whether the candidate answered; if not, nothing was sent. Raises RequestError for a broken stream."""
        canary, request = self._pointer.now(), chat.request
        if canary is None or request is None or not self._is_candidates(request, canary):
            return False
        headers = {CONSENT: request.consent.value, TENANT: request.tenant}
        given = Headers(scope=scope)
        headers |= {name: given[name] for name in _FORWARDED if name in given}
        payload, version = json.loads(body), canary.candidate.policy_version
        if canary.mode == "shadow":
            self._shadow.copy(payload, headers, version, self._layout.canary_answers(version))
            return False
        try:
            await _until_disconnect(self._proxy.answer(payload, headers, chat, version, send), receive)
        except UpstreamError as error:
            self.counters.add(f"champion.{error}")
            return False
        self.counters.add("candidate")
        return True

    def _is_candidates(self, request: ChatRequest, canary: Canary) -> bool:
        if not request.messages and not request.conversation_id:
            # Without text and without an id, its later turns could not be recognized.
            return False
        pseudonyms = self._pseudonyms.now()
        key = pseudonyms.pairing_key
        try:
            conversation = pairing_keys(
                key=key,
                tenant=request.tenant,
                user=request.user,
                conversation_id=request.conversation_id,
                messages=request.messages,
                response="",
            ).conversation
        except UnicodeEncodeError:
            return False
        digest = keyed_digest(key, "canary", str(canary.candidate.policy_version), conversation)
        if int(digest[:16], 16) >= canary.share * 2**64:
            return False
        own = owners(pseudonyms, tenant=request.tenant, user=request.user) if self._personal else ()
        return not any(self._layout.personal_pointer(owner).exists() for owner in own)


def _read_canary(path: Path) -> Canary | None:
    """Return the canary release in `path`; None where there is no such file, or it is malformed."""
    try:
        return read_json(path, Canary)
    except (OSError, DataError):
        return None


async def _until_disconnect(answering: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Await `answering`, and cancel it when the client disconnects."""
    answer, disconnect = asyncio.ensure_future(answering), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({answer, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            answer.result()
    finally:
        for task in (answer, disconnect):
            task.cancel()
        await asyncio.gather(answer, disconnect, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
