"""Outermost middleware around vLLM's app: authenticates, limits, times, counts, logs and traces each request.

    API key -> rate limits -> size and time of the body -> time of the request -> `serve.api.routes`

Each of these raises RequestError. However a request ends, it is counted, logged and traced, without user text.
"""

import asyncio
import logging
import re
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from starlette.datastructures import Headers

from serve.asgi import ASGIApp, Receive, Scope, Send
from serve.gateway.auth import Authenticator, Caller
from serve.gateway.body_limits import BODY_TIMEOUT_S, bounded, check_head
from serve.gateway.health import HEALTH, READY
from serve.gateway.http_errors import RequestError, internal_error, no_key, over_limit, took_too_long
from serve.gateway.observability import REQUEST_ID, Observability
from serve.gateway.request_record import RequestRecord, ResponseTracker, route_of
from serve.request_context import RequestContext, with_request_context

logger = logging.getLogger("ray.serve")

_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_NO_KEY = "everybody"
"""Name under which callers share one allowance where no keys are required."""


class GatewayMiddleware:
    """Pure ASGI. Passes a request on with a `RequestContext`, or answers it with an error."""

    def __init__(
        self, app: ASGIApp, authenticator: Authenticator, observability: Observability, health: ASGIApp
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._config = observability.config
        self._observability = observability
        self._health = health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            # vLLM has routes for web sockets, which require no key.
            await send({"type": "websocket.close"})
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        given = Headers(scope=scope).get(REQUEST_ID, "")
        # The client's own id, where it may stand in a log.
        context = RequestContext(path=path, request_id=given if _VALID_ID.fullmatch(given) else uuid4().hex)
        record = RequestRecord(context=context, method=scope["method"], route=route_of(path))
        if context.request_id != given:
            # Ray Serve adds the client's own to the response, which must not carry it twice.
            record.headers[REQUEST_ID] = context.request_id
        tracker = ResponseTracker(send, record)
        scope = self._observability.begin(record, scope)
        try:
            await self._answer(record, scope, receive, tracker)
        except RequestError as error:
            await _refuse(error, record, scope, receive, tracker)
        except asyncio.CancelledError:
            record.aborted = True
            raise
        except Exception as error:
            # Without its message, which may be user text.
            where = "".join(traceback.format_tb(error.__traceback__))
            logger.error("a request ended in %s\n%s", type(error).__name__, where)
            await _refuse(internal_error(), record, scope, receive, tracker)
        finally:
            record.end()
            self._observability.end(record)

    async def _answer(self, record: RequestRecord, scope: Scope, receive: Receive, tracker: ResponseTracker) -> None:
        """Raises RequestError."""
        context, config = record.context, self._config
        max_body_bytes = config.max_body_mib << 20
        check_head(scope, max_body_bytes)
        if context.path in (HEALTH, READY):
            await self._health(scope, receive, tracker)
            return
        caller = self._authenticator.caller(context.path, Headers(scope=scope))
        if caller is None:
            raise no_key()
        context.tenant, context.key_id = caller.tenant, caller.key_id
        async with self._allowed(caller, record):
            try:
                async with asyncio.timeout(config.request_timeout_s) as limit:
                    tracker.cut_if = limit.expired
                    await self._app(
                        with_request_context(scope, context), bounded(receive, max_body_bytes, BODY_TIMEOUT_S), tracker
                    )
            except TimeoutError:
                if not limit.expired():
                    raise
            if limit.expired() and not tracker.ended:
                raise took_too_long(config.request_timeout_s)

    @asynccontextmanager
    async def _allowed(self, caller: Caller, record: RequestRecord) -> AsyncIterator[None]:
        """Count one request of this caller while the block lasts. Raises RequestError beyond its limits."""
        if not caller.limited:
            yield
            return
        who, context = caller.key_id or _NO_KEY, record.context
        # The replica may switch to the shared limiter meanwhile: a ticket is released where it was acquired.
        rate_limiter = self._observability.rate_limiter
        decision = await rate_limiter.acquire(who, caller.limits)
        if decision.refused:
            raise over_limit(decision.refused, decision.retry_after_s, decision.headers)
        record.headers.update(decision.headers)
        try:
            yield
        finally:
            tokens = context.prompt_tokens + context.response_tokens
            await rate_limiter.release(who, caller.limits, decision.ticket, tokens)


async def _refuse(
    error: RequestError, record: RequestRecord, scope: Scope, receive: Receive, tracker: ResponseTracker
) -> None:
    tracker.cut_if = None
    record.refused = error.reason
    if not tracker.begun:
        await error.reply(scope, receive, tracker)
    elif tracker.streamed and not tracker.ended:
        await tracker(error.last_event)
    elif not tracker.ended:
        # Part of a plain response was sent: only closing the connection can tell the client.
        raise error
