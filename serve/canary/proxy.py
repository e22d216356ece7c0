"""Forwards a chat to another application, and its response back to the client.

Until the first byte is sent, another policy may still answer: an error before it is raised as `UpstreamError`. A plain
response is fetched whole before its first byte is sent, a stream is forwarded as it comes.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from sdpo_ray.headers import POLICY_VERSION, TURN_ID
from serve.asgi import Send
from serve.gateway.http_errors import RequestError
from serve.request_context import ChatContext

CONNECT_S = 2.0
IDLE_CONNECTIONS = 64
_FORWARDED = ("content-type", "cache-control")
_OUR_PREFIX = "x-sdpo-"


class UpstreamError(Exception):
    """The application failed before anything was sent to the client. Carries a word for the counters."""


class ChatProxy:
    """Client of one application at `url`, without `/v1`. `first_byte_s` is the longest wait for a response to begin."""

    def __init__(
        self, url: str, key: str, *, first_byte_s: float, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._first_byte_s = first_byte_s
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={
                "authorization": f"Bearer {key}",
                "content-type": "application/json",
                "accept-encoding": "identity",
            },
            timeout=httpx.Timeout(None, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=IDLE_CONNECTIONS),
            # It is on this machine, or in this cluster: proxies of the environment do not apply.
            trust_env=False,
            transport=transport,
        )

    async def answer(
        self, request: dict[str, Any], headers: Mapping[str, str], chat: ChatContext, version: int, send: Send
    ) -> None:
        """Let policy `version` answer. Raises UpstreamError before the first byte, RequestError for a later break."""
        streamed, wants_usage = bool(request.get("stream")), _wants_usage(request)
        if streamed and not wants_usage:
            request = {**request, "stream_options": {**(request.get("stream_options") or {}), "include_usage": True}}
        async with self.open(request, headers, version) as reply:
            body = b"" if streamed else await self._whole(reply)
            await send(_start(reply, None if streamed else len(body)))
            chat.context.policy_version = version
            chat.receipt = TURN_ID in reply.headers
            if not streamed:
                _count(chat, json.loads(body))
                await send({"type": "http.response.body", "body": body, "more_body": False})
                return
            try:
                async for event in _events(reply.aiter_raw()):
                    usage = _usage(event)
                    if usage is not None:
                        _count(chat, usage)
                    if usage is None or usage.get("choices") or wants_usage:
                        await send({"type": "http.response.body", "body": event, "more_body": True})
            except httpx.HTTPError:
                raise RequestError(502, "canary", "the answer broke off", "server_error", "broken_off") from None
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    @asynccontextmanager
    async def open(
        self, request: Mapping[str, Any], headers: Mapping[str, str], version: int
    ) -> AsyncIterator[httpx.Response]:
        """Yield a successful response of policy `version` whose body is not read yet. Raises UpstreamError."""
        body = json.dumps(request).encode()
        outbound = self._client.build_request("POST", "/v1/chat/completions", content=body, headers=headers)
        try:
            async with asyncio.timeout(self._first_byte_s):
                reply = await self._client.send(outbound, stream=True)
        except TimeoutError:
            raise UpstreamError("timeout") from None
        except (httpx.HTTPError, OSError):
            raise UpstreamError("connection") from None
        try:
            if reply.status_code != 200:
                raise UpstreamError(f"status_{reply.status_code}")
            if reply.headers.get(POLICY_VERSION) != str(version):
                raise UpstreamError("version")
            yield reply
        finally:
            # Where the body was not read to its end, this closes the connection, which aborts the request there.
            await reply.aclose()

    async def _whole(self, reply: httpx.Response) -> bytes:
        try:
            async with asyncio.timeout(self._first_byte_s):
                return await reply.aread()
        except TimeoutError:
            raise UpstreamError("timeout") from None
        except httpx.HTTPError:
            raise UpstreamError("connection") from None


def _start(reply: httpx.Response, length: int | None) -> dict[str, Any]:
    headers = [
        (name, value)
        for name, value in reply.headers.raw
        if (word := name.decode("latin-1").lower()) in _FORWARDED or word.startswith(_OUR_PREFIX)
    ]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _wants_usage(request: Mapping[str, Any]) -> bool:
    options = request.get("stream_options")
    return isinstance(options, Mapping) and bool(options.get("include_usage"))


async def _events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the events of a stream, each whole: chunks may end anywhere."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n\n")
        for event in whole:
            yield event + b"\n\n"
    if rest:
        yield rest


def _usage(event: bytes) -> dict[str, Any] | None:
    """Return the chunk of a stream that has its usage; None for any other event."""
    if b'"usage":{' not in event or not event.startswith(b"data: {"):
        return None
    chunk: dict[str, Any] = json.loads(event.removeprefix(b"data: "))
    return chunk


def _count(chat: ChatContext, answer: Mapping[str, Any]) -> None:
    usage = answer.get("usage") or {}
    chat.context.prompt_tokens = usage.get("prompt_tokens") or 0
    chat.context.response_tokens = usage.get("completion_tokens") or 0
