"""vLLM's OpenAI app as `serve.api.routes` calls it.

A chat that vLLM's own model of a request accepts goes to vLLM's own handler, in the task that brought it: FastAPI's way
there, with tasks that listen for a client who leaves, is a tenth of what a short answer costs the server. Everything
else takes the whole app: every other route, and what is refused, so that the words are vLLM's.
"""

import asyncio
import inspect
import json

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

from serve.api.routes import CHAT
from serve.asgi import Receive, Scope, Send, propagate_disconnect, read_body, replaying

_answer = inspect.unwrap(create_chat_completion)
"""Without the tasks that listen for a client who leaves: Ray Serve cancels ours."""


class VllmApp:
    """Pure ASGI around the app that vLLM's `build_app` made."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._chats = ExceptionMiddleware(self._chat, handlers=app.exception_handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _is_chat(scope):
            await self._chats({**scope, "app": self._app}, receive, send)
        else:
            await propagate_disconnect(self._app, scope, receive, send)

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        if body is None:
            return
        try:
            chat = ChatCompletionRequest.model_validate(json.loads(body))
        except ValidationError:
            await propagate_disconnect(self._app, scope, replaying(body, receive), send)
            return
        response: Response = await _answer(chat, Request(scope, receive))
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # vLLM answers whoever has left with an error.
            raise asyncio.CancelledError
        if isinstance(response, StreamingResponse):
            await response.stream_response(send)
        else:
            await response(scope, receive, send)


def _is_chat(scope: Scope) -> bool:
    """Whether this is a chat in JSON; vLLM has words for any other type."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    media_type = Headers(scope=scope).get("content-type", "").lower().partition(";")[0]
    return scope["method"] == "POST" and path == CHAT and media_type == "application/json"
