"""Limits the size of a request's head and body, and the time in which its body arrives."""

import asyncio

from serve.asgi import Message, Receive, Scope
from serve.gateway.http_errors import too_large, too_slow

BODY_TIMEOUT_S = 30.0
MAX_HEADER_BYTES = 32 << 10
"""HAProxy's own limit is 16 KiB; the replicas' HTTP servers have none."""


def check_head(scope: Scope, max_body_bytes: int) -> None:
    """Raise RequestError for a head that is too large, or announces a body that is."""
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
        raise too_large("head", f"{MAX_HEADER_BYTES >> 10} KiB", status=431)
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if length.isdigit() and int(length) > max_body_bytes:
        raise _body_too_large(max_body_bytes)


def bounded(receive: Receive, max_body_bytes: int, timeout_s: float) -> Receive:
    """Return a `receive` that raises RequestError for a body that is too large or too slow, chunked ones included."""
    arrived, whole = 0, False
    deadline = asyncio.get_running_loop().time() + timeout_s

    async def receiving() -> Message:
        nonlocal arrived, whole
        if whole:
            # After the body comes the disconnect, at any time.
            return await receive()
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise too_slow(timeout_s) from None
        arrived += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if arrived > max_body_bytes:
            raise _body_too_large(max_body_bytes)
        return message

    return receiving


def _body_too_large(max_body_bytes: int) -> Exception:
    return too_large("body", f"{max_body_bytes >> 20} MiB", status=413)
