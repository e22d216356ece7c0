"""Adds receipts to a chat's response on its way out.

`x-sdpo-policy-version` is on every response and `x-sdpo-turn-id` where a turn is on disk. A stream names its turn up
front and ends only after the fsync; when storing fails after all, the comment line `: x-sdpo-turn-id not stored`
revokes the receipt before `[DONE]`. A stream that the engine refuses before its first token becomes an error response:
vLLM would answer 200 and put the error into the stream, which no client retries.
"""

import json
from time import time_ns
from typing import Any

from starlette.datastructures import MutableHeaders

from sdpo_ray.headers import POLICY_VERSION, TURN_ID
from serve.api.context import ApiContext
from serve.asgi import Message, Send
from serve.request_context import ChatContext

NOT_STORED = f": {TURN_ID} not stored\n\n".encode()


class ChatResponse:
    """ASGI `send` that holds the response's start until its first body, when the policy version is known."""

    def __init__(self, send: Send, chat: ChatContext, api: ApiContext) -> None:
        self._send = send
        self._chat = chat
        self._api = api
        self._start: Message | None = None
        self._promised = False
        self._refused = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        await self._stored()
        if self._refused:
            return
        if self._start is not None:
            start, self._start = self._start, None
            if (error := _streamed_error(start, message)) is not None:
                self._refused = True
                MutableHeaders(raw=start["headers"])["content-type"] = "application/json"
                start["status"] = error["error"]["code"]
                message = {"type": "http.response.body", "body": json.dumps(error).encode(), "more_body": False}
            self._add_headers(start)
            await self._send(start)
        elif self._promised and _is_done(message) and not self._chat.receipt:
            await self._send({"type": "http.response.body", "body": NOT_STORED, "more_body": True})
        await self._send(message)

    async def _stored(self) -> None:
        """Return once the turns of a finished response are on disk, or have failed to be stored."""
        chat = self._chat
        if chat.storing is None:
            return
        storing, chat.storing, began_ns = chat.storing, None, time_ns()
        try:
            chat.receipt = await storing
        finally:
            chat.context.add_span("journal", began_ns)

    def _add_headers(self, start: Message) -> None:
        headers = MutableHeaders(raw=start["headers"])
        headers.update(self._api.served())
        if start["status"] != 200:
            return
        version = self._chat.context.policy_version
        if version is not None:
            headers[POLICY_VERSION] = str(version)
        streamed = headers.get("content-type", "").startswith("text/event-stream")
        recorder = self._api.recorder
        self._promised = streamed and self._chat.recorded and recorder is not None and recorder.healthy
        if self._chat.request is not None and (self._chat.receipt or self._promised):
            headers[TURN_ID] = self._chat.request.turn_id


def _is_done(message: Message) -> bool:
    return bytes(message.get("body", b"")).startswith(b"data: [DONE]")


def _streamed_error(start: Message, message: Message) -> dict[str, Any] | None:
    """Return the error of a stream whose first event is an error; None for any other response."""
    streamed = MutableHeaders(raw=start["headers"]).get("content-type", "").startswith("text/event-stream")
    event = bytes(message.get("body", b"")).partition(b"\n")[0]
    if start["status"] != 200 or not streamed or not event.startswith(b'data: {"error"'):
        return None
    error: dict[str, Any] = json.loads(event.removeprefix(b"data: "))
    return error
