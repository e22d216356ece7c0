"""What an operator sees of one request: outcome, times and sizes, without user text."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import MutableHeaders

from serve.api.models import MODELS, is_about_models
from serve.api.routes import FEEDBACK, ROUTES
from serve.asgi import Message, Send
from serve.gateway.auth import OPEN
from serve.request_context import RequestContext

ABORTED = 499
"""Status of a request whose client disconnected before the response began, as in nginx. It is never sent."""
_REASONS = {
    400: "invalid",
    401: "auth",
    404: "not_found",
    405: "method",
    408: "body",
    413: "body",
    422: "invalid",
    429: "rate",
    431: "body",
    503: "overload",
    504: "timeout",
}


def route_of(path: str) -> str:
    """Return the route of a path, `other` where there is none, so that metrics have few labels."""
    if is_about_models(path):
        return MODELS
    return path if path in ROUTES or path in OPEN else "other"


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """Outcome of one request. Made by `serve.gateway.middleware`; read by the log, metrics and traces at its end."""

    context: RequestContext
    method: str
    route: str
    """One of the known routes, or `other`."""
    began_ns: int = field(default_factory=time.time_ns)
    """Since 1970."""
    began_s: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    ttft_s: float | None = None
    """Seconds to the first event of a stream; None for any other response."""
    status: int = 0
    aborted: bool = False
    """Whether the client disconnected first."""
    refused: str = ""
    """Reason of a `RequestError`; empty where the response's status gives the reason."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers that are added to the response."""
    span: Any = None
    """OpenTelemetry's span, where traces are sent."""

    def end(self) -> None:
        """Set the duration. Call it once, last."""
        self.seconds = time.perf_counter() - self.began_s
        if self.aborted and not self.status:
            self.status = ABORTED

    @property
    def reason(self) -> str:
        """Why it was refused, one of a few words; empty where it was not."""
        if self.refused or self.aborted or self.status < 400:
            return self.refused
        storing = self.status == 503 and self.context.path == FEEDBACK
        return "storage" if storing else _REASONS.get(self.status, "")

    @property
    def outcome(self) -> str:
        """`ok`, `aborted` by the client, `timeout`, `refused` for a reason, or `error` of the server."""
        if self.aborted:
            return "aborted"
        if self.reason:
            return {"timeout": "timeout", "internal": "error"}.get(self.reason, "refused")
        return "ok" if 200 <= self.status < 400 else "error"

    def seconds_in(self, name: str) -> float:
        """Return the seconds of a wait; of the longest one, where a request wants several responses."""
        return max((s.ended_ns - s.began_ns for s in self.context.spans if s.name == name), default=0) / 1e9


class ResponseTracker:
    """ASGI `send` that records what is sent, and can be cut off."""

    def __init__(self, send: Send, record: RequestRecord) -> None:
        self._send = send
        self._record = record
        self.begun = self.ended = self.streamed = False
        self.cut_if: Callable[[], bool] | None = None
        """While it returns true, nothing is sent."""

    async def __call__(self, message: Message) -> None:
        if self.cut_if is not None and self.cut_if():
            return
        record = self._record
        if message["type"] == "http.response.start":
            self.begun = True
            record.status = message["status"]
            headers = MutableHeaders(raw=message["headers"])
            headers.update(record.headers)
            self.streamed = headers.get("content-type", "").startswith("text/event-stream")
        elif message["type"] == "http.response.body":
            if self.streamed and record.ttft_s is None and message.get("body"):
                record.ttft_s = time.perf_counter() - record.began_s
            self.ended = not message.get("more_body", False)
        await self._send(message)
