"""What stands between Ray Serve and vLLM's own OpenAI app: one ASGI middleware.

It reads the chat request for the recorder, keeps control tokens out of user text, and takes feedback.
"""

import json
import time
from uuid import uuid4

from starlette.datastructures import Headers

from sdpo_ray.capture.consent import default_consent
from sdpo_ray.capture.conversation import read_request
from sdpo_ray.errors import DataError
from serve.asgi import ASGIApp, Receive, Scope, Send, read_body, refuse, run_on, with_headers
from serve.door import Door
from serve.escape import escape
from serve.exchange import EXCHANGE, Exchange, Visit, visit_of
from serve.feedback import reply_to_feedback
from serve.replies import Reply

CHAT = "/v1/chat/completions"
FEEDBACK = "/v1/feedback"
ROUTES = {CHAT: "POST", FEEDBACK: "POST", "/v1/models": "GET", "/health": "GET", "/metrics": "GET"}


class Middleware:
    """Pure ASGI: it may not buffer a stream, and it outlives a cancelled request by one abort."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door
        # The examination engine records nobody, so there is nobody's feedback to take.
        self._routes = {path: method for path, method in ROUTES.items() if path != FEEDBACK or door.recorder}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        method = self._routes.get(path)
        if method is None:
            await refuse(404, f"there is no {path} here", "not_found_error")(scope, receive, send)
            return
        if scope["method"] != method:
            await refuse(405, f"{path} takes {method}", "invalid_request_error")(scope, receive, send)
            return
        if path in (CHAT, FEEDBACK):
            await self._with_body(visit_of(scope), scope, receive, send)
        else:
            await self._app(scope, receive, with_headers(send, self._door.served))

    async def _with_body(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(receive)
        except DataError as error:
            await refuse(413, str(error), "invalid_request_error")(scope, receive, send)
            return
        if body is None:
            return
        if visit.path == CHAT:
            await self._chat(body, visit, scope, receive, send)
        elif self._door.recorder is not None:
            headers, recorder, capture = Headers(scope=scope), self._door.recorder, self._door.capture
            reply = await reply_to_feedback(body, headers, tenant=visit.tenant, recorder=recorder, capture=capture)
            await reply(scope, receive, with_headers(send, self._door.served))

    async def _chat(self, body: bytes, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            exchange, body = self._prepare(body, visit, Headers(scope=scope))
        except DataError as error:
            await refuse(400, str(error), "invalid_request_error")(scope, receive, send)
            return
        token = EXCHANGE.set(exchange)
        try:
            await run_on(body, self._app, scope, receive, Reply(send, exchange, self._door))
        finally:
            EXCHANGE.reset(token)

    def _prepare(self, body: bytes, visit: Visit, headers: Headers) -> tuple[Exchange, bytes]:
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
                tenant=visit.tenant,
                default=default_consent(self._door.capture, visit.tenant),
                now_s=time.time(),
            )
            escaped = json.dumps(escape(request, self._door.control)).encode()
        except RecursionError as error:
            raise DataError(f"the body is nested too deeply: {error}") from error
        recorder = self._door.recorder
        return Exchange(visit=visit, asked=asked, recorded=recorder is not None and recorder.wants(asked)), escaped
