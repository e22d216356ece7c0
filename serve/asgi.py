"""Helpers for pure ASGI middleware: read a body, replay it, refuse a request, add headers."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


def refuse(
    status: int, text: str, kind: str, headers: Mapping[str, str] | None = None, *, code: str | None = None
) -> JSONResponse:
    """Return an error response in OpenAI's shape; without a `code` it is the status, as in vLLM."""
    error = {"message": text, "type": kind, "param": None, "code": code or status}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


async def read_body(receive: Receive) -> bytes | None:
    """Return the request's body; None when the client disconnected first. `serve.gateway.body_limits` bounds it."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def replay_body(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body, which was read before, and then whatever comes after it."""
    bodies = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return bodies.pop() if bodies else await receive()

    return replay


def with_content_length(scope: Scope, length: int) -> Scope:
    """Return a copy of the scope with that content length."""
    headers = MutableHeaders(raw=list(scope["headers"]))
    headers["content-length"] = str(length)
    return {**scope, "headers": headers.raw}


async def propagate_disconnect(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run an app that only listens for `http.disconnect`, and send it one when this task is cancelled.

    Ray Serve reports a lost client by cancelling the request's task, while vLLM's handlers run in tasks of their own;
    without this they would generate to the end.
    """
    disconnected = asyncio.Event()

    async def receiving() -> Message:
        either = (asyncio.ensure_future(receive()), asyncio.ensure_future(disconnected.wait()))
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return either[0].result() if either[0].done() else {"type": "http.disconnect"}
        finally:
            for waiting in either:
                waiting.cancel()
            await asyncio.gather(*either, return_exceptions=True)

    task = asyncio.ensure_future(app(scope, receiving, send))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        disconnected.set()
        await asyncio.wait({task}, timeout=5)
        task.cancel()
        raise


def with_headers(send: Send, headers: Callable[[], dict[str, str]]) -> Send:
    """Return a `send` that adds headers to the start of a response."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(raw=message["headers"]).update(headers())
        await send(message)

    return sending
