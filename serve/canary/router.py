"""A candidate among users: which conversations are its own while `canary.json` says so, and who answers them.

    canary   its conversations are answered by the application `canary`; by the champion where that one cannot
    shadow   the champion answers everybody, and the candidate gets copies

A conversation is the candidate's by a keyed digest of what pairing knows it by, so it stays with one policy over all
its turns and on every replica; the next candidate draws anew. When the file goes, all are the champion's at once. Who
has a personal policy takes no part.
"""

import asyncio
import json
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
from sdpo_ray.io.paths import Layout
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
    """Hands the candidate's share of chats to the application `canary`. `counters` say who answered, and why."""

    def __init__(self, run: Run, layout: Layout, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        key = private_key(layout.canary_key).decode()
        # The champion needs its time, too, for what the candidate was waited for in vain.
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
        """Whether the candidate answered; where it did not, not one byte is out. Raises Refusal for a broken stream."""
        canary, asked = self._pointer.now(), chat.request
        if canary is None or asked is None or not self._is_candidates(asked, canary):
            return False
        headers = {CONSENT: asked.consent.value, TENANT: asked.tenant}
        given = Headers(scope=scope)
        headers |= {name: given[name] for name in _FORWARDED if name in given}
        request, version = json.loads(body), canary.candidate.policy_version
        if canary.mode == "shadow":
            self._shadow.copy(request, headers, version, self._layout.canary_answers(version))
            return False
        try:
            await _unless_left(self._proxy.answer(request, headers, chat, version, send), receive)
        except UpstreamError as away:
            self.counters.add(f"champion.{away}")
            return False
        self.counters.add("candidate")
        return True

    def _is_candidates(self, asked: ChatRequest, canary: Canary) -> bool:
        if not asked.messages and not asked.conversation_id:
            # No plain text, and no name: its later turns could not be told from others.
            return False
        pseudonyms = self._pseudonyms.now()
        key = pseudonyms.pairing_key
        try:
            conversation = pairing_keys(
                key=key,
                tenant=asked.tenant,
                user=asked.user,
                conversation_id=asked.conversation_id,
                messages=asked.messages,
                response="",
            ).conversation
        except UnicodeEncodeError:
            return False
        drawn = keyed_digest(key, "canary", str(canary.candidate.policy_version), conversation)
        if int(drawn[:16], 16) >= canary.share * 2**64:
            return False
        own = owners(pseudonyms, tenant=asked.tenant, user=asked.user) if self._personal else ()
        return not any(self._layout.personal_pointer(owner).exists() for owner in own)


def _read_canary(path: Path) -> Canary | None:
    """The canary in `canary.json`; None where there is no such file, or where it is not a `Canary`."""
    try:
        return read_json(path, Canary)
    except (OSError, DataError):
        return None


async def _unless_left(answering: Any, receive: Receive) -> None:
    """Await `answering`, but only for as long as the client is there."""
    answer, left = asyncio.ensure_future(answering), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            answer.result()
    finally:
        for task in (answer, left):
            task.cancel()
        await asyncio.gather(answer, left, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
