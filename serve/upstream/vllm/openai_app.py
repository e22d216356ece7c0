"""vLLM's OpenAI app around one engine, with a shorter way for chats.

A chat that vLLM's own request model accepts goes to vLLM's own handler, in the task that brought it: FastAPI's way
there, with tasks that listen for a disconnect, is a tenth of what a short response costs the server. Every other route
takes the whole app, and so does a chat that is refused, so that error bodies are vLLM's.
"""

import argparse
import asyncio
import inspect
import json
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.openai.chat_completion.api_router import create_chat_completion
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

from serve.asgi import Receive, Scope, Send, propagate_disconnect, read_body, replay_body

_CHAT = "/v1/chat/completions"
_create_chat = inspect.unwrap(create_chat_completion)
"""Without the decorator's tasks that listen for a disconnect: Ray Serve cancels the request's own task."""


async def openai_app(engine: Any, arguments: argparse.Namespace) -> "OpenAIApp":
    """Return vLLM's app around `engine`; `arguments` are those of vLLM's API server."""
    tasks = await engine.get_supported_tasks()
    app = build_app(arguments, tasks, engine.model_config)
    await init_app_state(engine, app.state, arguments, tasks)
    # vLLM's handler of a dead engine looks for its own HTTP server here; Ray Serve has another.
    app.state.server = SimpleNamespace()
    return OpenAIApp(app)


class OpenAIApp:
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
            await propagate_disconnect(self._app, scope, replay_body(body, receive), send)
            return
        response: Response = await _create_chat(chat, Request(scope, receive))
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # vLLM swallows the cancellation and returns an error response.
            raise asyncio.CancelledError
        if isinstance(response, StreamingResponse):
            await response.stream_response(send)
        else:
            await response(scope, receive, send)


def _is_chat(scope: Scope) -> bool:
    """Return whether this is a chat in JSON; vLLM's app answers any other content type."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    media_type = Headers(scope=scope).get("content-type", "").lower().partition(";")[0]
    return scope["method"] == "POST" and path == _CHAT and media_type == "application/json"
