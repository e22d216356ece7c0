"""Routes requests to vLLM's OpenAI app, and answers those about models and feedback itself.

A chat is parsed for the recorder, and control tokens in client text are escaped. A completion of plain text is answered
by one policy version like a chat; it is never a turn, and not recorded.
"""

import json
import time
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers

from sdpo_ray.capture.chat_request import read_request
from sdpo_ray.capture.consent import default_consent
from sdpo_ray.errors import DataError
from serve.api.context import ApiContext
from serve.api.control_tokens import escape, escape_completion
from serve.api.feedback import reply_to_feedback
from serve.api.models import MODELS, is_about_models, reply_about_models
from serve.api.request_allowlist import check_chat, check_completion
from serve.api.response import ChatResponse
from serve.asgi import ASGIApp, Receive, Scope, Send, read_body, refuse, replay_body, with_content_length, with_headers
from serve.request_context import CHAT_CONTEXT, ChatContext, RequestContext, request_context_of

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
FEEDBACK = "/v1/feedback"
ROUTES = {
    **dict.fromkeys((CHAT, COMPLETION, FEEDBACK), "POST"),
    **dict.fromkeys((MODELS, "/health", "/metrics"), "GET"),
}


class ApiMiddleware:
    """Pure ASGI: a stream is not buffered, and a cancelled request still aborts in the engine."""

    def __init__(self, app: ASGIApp, api: ApiContext) -> None:
        self._app = app
        self._api = api
        # The evaluation engine records no turns, so it takes no feedback on them.
        self._routes = {path: method for path, method in ROUTES.items() if path != FEEDBACK or api.recorder}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        method = self._routes.get(MODELS if is_about_models(path) else path)
        if method is None:
            await refuse(404, f"there is no {path} here", "not_found_error")(scope, receive, send)
        elif scope["method"] != method:
            allow = {"allow": method}
            await refuse(405, f"{path} takes {method}", "invalid_request_error", allow)(scope, receive, send)
        elif method == "POST":
            await self._with_body(request_context_of(scope), scope, receive, send)
        elif is_about_models(path):
            reply = reply_about_models(path, self._api.model)
            await reply(scope, receive, with_headers(send, self._api.served))
        else:
            await self._app(scope, receive, with_headers(send, self._api.served))

    async def _with_body(self, context: RequestContext, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        if body is None:
            return
        if context.path != FEEDBACK:
            await self._generate(body, context, scope, receive, send)
        elif self._api.recorder is not None:
            headers, recorder, capture = Headers(scope=scope), self._api.recorder, self._api.capture
            reply = await reply_to_feedback(body, headers, tenant=context.tenant, recorder=recorder, capture=capture)
            await reply(scope, receive, with_headers(send, self._api.served))

    async def _generate(self, body: bytes, context: RequestContext, scope: Scope, receive: Receive, send: Send) -> None:
        prepare = self._chat if context.path == CHAT else self._completion
        try:
            chat, escaped = prepare(_object(body), context, Headers(scope=scope))
        except DataError as error:
            await refuse(400, str(error), "invalid_request_error")(scope, receive, send)
            return
        except RecursionError:
            await refuse(400, "the body is nested too deeply", "invalid_request_error")(scope, receive, send)
            return
        canary = self._api.canary
        if chat.request is not None and canary is not None and await canary.take(chat, body, scope, receive, send):
            return
        token = CHAT_CONTEXT.set(chat)
        try:
            reply = ChatResponse(send, chat, self._api)
            await self._app(with_content_length(scope, len(escaped)), replay_body(escaped, receive), reply)
        finally:
            CHAT_CONTEXT.reset(token)
            if chat.storing is not None and self._api.recorder is not None:
                # The client got no response that would have waited for it.
                self._api.recorder.finish(chat.storing)
            if chat.request is None and context.policy_version is not None and self._api.recorder is not None:
                self._api.recorder.counters.add("not_recorded.completion")

    def _chat(self, request: dict[str, Any], context: RequestContext, headers: Headers) -> tuple[ChatContext, bytes]:
        """Return a chat's context and the body that vLLM gets. Raises DataError, RecursionError."""
        check_chat(request)
        chat_request = read_request(
            request,
            headers,
            turn_id=f"turn-{uuid4().hex}",
            tenant=context.tenant,
            default=default_consent(self._api.capture, context.tenant),
            now_s=time.time(),
        )
        offered = bool(request.get("tools")) and request.get("tool_choice") != "none"
        if offered and not self._api.calls_tools and request.get("tool_choice") in (None, "auto"):
            # Without a parser the model may call no tool; vLLM would refuse the request.
            request["tool_choice"], offered = "none", False
        escaped = escape(request, self._api.control)
        recorder = self._api.recorder
        recorded = recorder is not None and recorder.wants(chat_request)
        chat = ChatContext(context=context, request=chat_request, recorded=recorded)
        if offered and chat.recorded:
            about_tools = ("tools", "tool_choice", "parallel_tool_calls")
            chat.tool_use = {name: escaped[name] for name in about_tools if name in escaped}
        return chat, json.dumps(escaped).encode()

    def _completion(
        self, request: dict[str, Any], context: RequestContext, headers: Headers
    ) -> tuple[ChatContext, bytes]:
        """Return a completion's context and the body that vLLM gets. Raises DataError, RecursionError."""
        check_completion(request)
        escaped = escape_completion(request, self._api.control)
        return ChatContext(context=context, request=None, recorded=False), json.dumps(escaped).encode()


def _object(body: bytes) -> dict[str, Any]:
    """Parse a request's body into a JSON object. Raises DataError."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the body is not JSON: {error}") from error
    if not isinstance(request, dict):
        raise DataError("the body is not a JSON object")
    return request
