"""What stands between Ray Serve and vLLM's own OpenAI app: one ASGI middleware.

It reads the chat request for the recorder, keeps control tokens out of user text, and answers with
`x-sdpo-policy-version` on every response and `x-sdpo-turn-id` where a turn is on disk (a stream names its
turn up front and ends only after the fsync; when storing fails after all, the comment line
`: x-sdpo-turn-id not stored` takes the promise back before `[DONE]`).
"""

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from sdpo_ray.capture.conversation import read_request
from sdpo_ray.capture.recorder import Recorder
from sdpo_ray.chat import ControlTokens
from sdpo_ray.errors import DataError
from sdpo_ray.headers import POLICY_VERSION, TURN_ID
from sdpo_ray.records import Consent
from serve.engine import EXCHANGE, Exchange
from serve.escape import escape

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

CHAT = "/v1/chat/completions"
ROUTES = {CHAT: "POST", "/v1/models": "GET", "/health": "GET", "/metrics": "GET"}
MAX_BODY_BYTES = 4 << 20
NOT_STORED = f": {TURN_ID} not stored\n\n".encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """What the middleware knows of its replica."""

    recorder: Recorder | None
    """None on the examination engine, which records nobody."""
    control: ControlTokens
    consent: Consent
    pseudonym_key: bytes
    api_key: str | None
    """When set, every route but `/health` asks for it as a bearer token."""
    served: Callable[[], dict[str, str]]
    """Headers that tell what is served now."""


class Middleware:
    """Pure ASGI: it may not buffer a stream, and it outlives a cancelled request by one abort."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if ROUTES.get(path) is None:
            await _refuse(404, f"there is no {path} here", "not_found_error")(scope, receive, send)
        elif scope["method"] != ROUTES[path]:
            await _refuse(405, f"{path} takes {ROUTES[path]}", "invalid_request_error")(scope, receive, send)
        elif not self._may_enter(path, Headers(scope=scope)):
            await _refuse(401, "this endpoint asks for a bearer key", "authentication_error")(scope, receive, send)
        elif path == CHAT:
            await self._chat(scope, receive, send)
        else:
            await self._app(scope, receive, _with_headers(send, self._door.served))

    def _may_enter(self, path: str, headers: Headers) -> bool:
        if self._door.api_key is None or path == "/health":
            return True
        return secrets.compare_digest(headers.get("authorization", ""), f"Bearer {self._door.api_key}")

    async def _chat(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        try:
            body = await _read(receive)
        except DataError as error:
            await _refuse(413, str(error), "invalid_request_error")(scope, receive, send)
            return
        if body is None:
            return
        try:
            exchange, body = self._prepare(body, Headers(scope=scope))
        except DataError as error:
            await _refuse(400, str(error), "invalid_request_error")(scope, receive, send)
            return
        token = EXCHANGE.set(exchange)
        try:
            await _run(self._app, scope, body, receive, _Reply(send, exchange, self._door))
        finally:
            EXCHANGE.reset(token)

    def _prepare(self, body: bytes, headers: Headers) -> tuple[Exchange, bytes]:
        """The exchange of a request and the body vLLM sees. Raises DataError for what is no JSON object."""
        try:
            request = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise DataError(f"the body is not JSON: {error}") from error
        if not isinstance(request, dict):
            raise DataError("the body is not a JSON object")
        try:
            asked = read_request(
                request,
                headers,
                turn_id=f"turn-{uuid4().hex}",
                key=self._door.pseudonym_key,
                default=self._door.consent,
                now_s=time.time(),
            )
            escaped = json.dumps(escape(request, self._door.control)).encode()
        except RecursionError as error:
            raise DataError(f"the body is nested too deeply: {error}") from error
        recorder = self._door.recorder
        return Exchange(asked=asked, recorded=recorder is not None and recorder.wants(asked)), escaped


class _Reply:
    """Holds the response's head until its first body, when the policy version is known."""

    def __init__(self, send: Send, exchange: Exchange, door: Door) -> None:
        self._send = send
        self._exchange = exchange
        self._door = door
        self._head: Message | None = None
        self._promised = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = message
            return
        if self._head is not None:
            head, self._head = self._head, None
            self._add_headers(head)
            await self._send(head)
        elif self._promised and _is_done(message) and not self._exchange.receipt:
            await self._send({"type": "http.response.body", "body": NOT_STORED, "more_body": True})
        await self._send(message)

    def _add_headers(self, head: Message) -> None:
        headers = MutableHeaders(raw=head["headers"])
        headers.update(self._door.served())
        if head["status"] != 200:
            return
        if self._exchange.policy_version is not None:
            headers[POLICY_VERSION] = str(self._exchange.policy_version)
        streamed = headers.get("content-type", "").startswith("text/event-stream")
        recorder = self._door.recorder
        self._promised = streamed and self._exchange.recorded and recorder is not None and recorder.healthy
        if self._exchange.receipt or self._promised:
            headers[TURN_ID] = self._exchange.asked.turn_id


def _is_done(message: Message) -> bool:
    return bytes(message.get("body", b"")).startswith(b"data: [DONE]")


async def _read(receive: Receive) -> bytes | None:
    """The request's body; None when the client left first. Raises DataError over the limit."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise DataError(f"the request is larger than {MAX_BODY_BYTES} bytes")
        if not message.get("more_body", False):
            return bytes(body)


async def _run(app: ASGIApp, scope: MutableMapping[str, Any], body: bytes, receive: Receive, send: Send) -> None:
    """Run the app on a body already read. A cancelled request reaches it as a disconnect.

    Ray Serve reports a lost client by cancelling us, while vLLM's handler runs in a task of its own and
    only listens for `http.disconnect`; without this it would generate to the end for nobody.
    """
    gone = asyncio.Event()
    bodies = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        if bodies:
            return bodies.pop()
        either = (asyncio.ensure_future(receive()), asyncio.ensure_future(gone.wait()))
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return either[0].result() if either[0].done() else {"type": "http.disconnect"}
        finally:
            for waiting in either:
                waiting.cancel()
            await asyncio.gather(*either, return_exceptions=True)

    headers = MutableHeaders(raw=list(scope["headers"]))
    headers["content-length"] = str(len(body))
    task = asyncio.ensure_future(app({**scope, "headers": headers.raw}, replay, send))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        gone.set()
        await asyncio.wait({task}, timeout=5)
        task.cancel()
        raise


def _with_headers(send: Send, served: Callable[[], dict[str, str]]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(raw=message["headers"]).update(served())
        await send(message)

    return sending


def _refuse(status: int, text: str, kind: str) -> JSONResponse:
    """An error in OpenAI's shape."""
    return JSONResponse({"error": {"message": text, "type": kind, "param": None, "code": status}}, status_code=status)
