"""Who comes in: the first of our layers around vLLM's app, before anything of a request is read."""

from uuid import uuid4

from starlette.datastructures import Headers

from serve.asgi import ASGIApp, Receive, Scope, Send, refuse
from serve.auth import Entrance
from serve.exchange import Visit, with_visit


class Front:
    """Pure ASGI. Lets a request in as a `Visit`, or refuses it."""

    def __init__(self, app: ASGIApp, entrance: Entrance) -> None:
        self._app = app
        self._entrance = entrance

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        tenant = self._entrance.tenant(path, Headers(scope=scope))
        if tenant is None:
            asked = {"www-authenticate": "Bearer"}
            text = "this endpoint asks for a bearer key that it knows"
            await refuse(401, text, "authentication_error", asked)(scope, receive, send)
            return
        visit = Visit(path=path, request_id=uuid4().hex, tenant=tenant)
        await self._app(with_visit(scope, visit), receive, send)
