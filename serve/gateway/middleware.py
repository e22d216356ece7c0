"""The first of our layers around vLLM's app: who comes in, how much of it, for how long, and what is noted of it.

    a key -> within its limits -> a body of bounded size and slowness -> at most so many seconds -> `serve.api.routes`

Whatever is refused on the way is a `Refusal`. However a request ends, it is counted, logged and traced, without a word
of what was said.
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
from serve.gateway.http_errors import RequestError, gone_wrong, no_key, over_limit, took_too_long
from serve.gateway.observability import REQUEST_ID, Observability
from serve.gateway.request_record import RequestRecord, ResponseTracker, route_of
from serve.request_context import RequestContext, with_request_context

logger = logging.getLogger("ray.serve")

_SANE = re.compile(r"[A-Za-z0-9._-]{1,128}")
_EVERYBODY = "everybody"
"""Who shares an allowance where no keys are asked for."""


class GatewayMiddleware:
    """Pure ASGI. Lets a request in as a `RequestContext`, or refuses it."""

    def __init__(self, app: ASGIApp, entrance: Authenticator, operation: Observability, health: ASGIApp) -> None:
        self._app = app
        self._entrance = entrance
        self._config = operation.config
        self._operation = operation
        self._health = health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            # vLLM has routes for web sockets, which ask for no key.
            await send({"type": "websocket.close"})
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        given = Headers(scope=scope).get(REQUEST_ID, "")
        # The client's own, where it is one that may stand in a log.
        visit = RequestContext(path=path, request_id=given if _SANE.fullmatch(given) else uuid4().hex)
        passage = RequestRecord(visit=visit, method=scope["method"], route=route_of(path))
        if visit.request_id != given:
            # Ray Serve sends the client's own back, which must not be there twice.
            passage.headers[REQUEST_ID] = visit.request_id
        outgoing = ResponseTracker(send, passage)
        scope = self._operation.begin(passage, scope)
        try:
            await self._answer(passage, scope, receive, outgoing)
        except RequestError as refusal:
            await _refuse(refusal, passage, scope, receive, outgoing)
        except asyncio.CancelledError:
            passage.aborted = True
            raise
        except Exception as error:
            # Not its words, which may be anybody's.
            where = "".join(traceback.format_tb(error.__traceback__))
            logger.error("a request ended in %s\n%s", type(error).__name__, where)
            await _refuse(gone_wrong(), passage, scope, receive, outgoing)
        finally:
            passage.end()
            self._operation.end(passage)

    async def _answer(self, passage: RequestRecord, scope: Scope, receive: Receive, outgoing: ResponseTracker) -> None:
        """Raises Refusal."""
        visit, config = passage.visit, self._config
        max_body_bytes = config.max_body_mib << 20
        check_head(scope, max_body_bytes)
        if visit.path in (HEALTH, READY):
            await self._health(scope, receive, outgoing)
            return
        caller = self._entrance.caller(visit.path, Headers(scope=scope))
        if caller is None:
            raise no_key()
        visit.tenant, visit.key_id = caller.tenant, caller.key_id
        async with self._allowed(caller, passage):
            try:
                async with asyncio.timeout(config.request_timeout_s) as limit:
                    outgoing.cut_when = limit.expired
                    await self._app(
                        with_request_context(scope, visit), bounded(receive, max_body_bytes, BODY_TIMEOUT_S), outgoing
                    )
            except TimeoutError:
                if not limit.expired():
                    raise
            if limit.expired() and not outgoing.ended:
                raise took_too_long(config.request_timeout_s)

    @asynccontextmanager
    async def _allowed(self, caller: Caller, passage: RequestRecord) -> AsyncIterator[None]:
        """Within it, one request of this caller's is under way. Raises Refusal."""
        if not caller.limited:
            yield
            return
        who, visit = caller.key_id or _EVERYBODY, passage.visit
        # The one it enters by is the one it leaves by, whatever the replica is told meanwhile.
        gatekeeper = self._operation.gatekeeper
        verdict = await gatekeeper.enter(who, caller.limits)
        if verdict.refused:
            raise over_limit(verdict.refused, verdict.retry_after_s, verdict.headers)
        passage.headers.update(verdict.headers)
        try:
            yield
        finally:
            tokens = visit.prompt_tokens + visit.response_tokens
            await gatekeeper.leave(who, caller.limits, verdict.ticket, tokens)


async def _refuse(
    refusal: RequestError, passage: RequestRecord, scope: Scope, receive: Receive, outgoing: ResponseTracker
) -> None:
    outgoing.cut_when = None
    passage.refused = refusal.reason
    if not outgoing.begun:
        await refusal.reply(scope, receive, outgoing)
    elif outgoing.streamed and not outgoing.ended:
        await outgoing(refusal.last_event)
    elif not outgoing.ended:
        # Half of a plain answer is out: all that is left is to break off the connection.
        raise refusal
