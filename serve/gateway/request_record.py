"""One request as those who run the service see it: what came of it, when, and what it took; never what was said."""

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
"""The status of a request whose client left before it was told one, as nginx has it. Nobody receives it."""
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
    """The route of ours that a path belongs to, `other` where it is none: there are few, whatever is asked for."""
    if is_about_models(path):
        return MODELS
    return path if path in ROUTES or path in OPEN else "other"


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """Made by `serve.gateway.middleware`; read by `accesslog`, `traffic` and `tracing` beside it once it has ended."""

    context: RequestContext
    method: str
    route: str
    """One of those that we have, or `other`."""
    began_ns: int = field(default_factory=time.time_ns)
    """Since 1970."""
    began_s: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    ttft_s: float | None = None
    """From here to the first event of a stream; None for what is no stream."""
    status: int = 0
    aborted: bool = False
    """The client left first."""
    refused: str = ""
    """A word for why we gave it up, where it was we; empty where the answer's status tells it."""
    headers: dict[str, str] = field(default_factory=dict)
    """What the response carries besides its own."""
    span: Any = None
    """OpenTelemetry's, where traces are sent."""

    def end(self) -> None:
        """The last that happens to it."""
        self.seconds = time.perf_counter() - self.began_s
        if self.aborted and not self.status:
            self.status = ABORTED

    @property
    def reason(self) -> str:
        """Why it was refused, in one of a few words; empty where it was not."""
        if self.refused or self.aborted or self.status < 400:
            return self.refused
        storing = self.status == 503 and self.context.path == FEEDBACK
        return "storage" if storing else _REASONS.get(self.status, "")

    @property
    def outcome(self) -> str:
        """`ok`, `aborted` by the client, `timeout`, `refused` for a reason, or `error`, which is ours."""
        if self.aborted:
            return "aborted"
        if self.reason:
            return {"timeout": "timeout", "internal": "error"}.get(self.reason, "refused")
        return "ok" if 200 <= self.status < 400 else "error"

    def seconds_in(self, name: str) -> float:
        """Seconds of one stage; of the longest, where several answers were asked at once."""
        return max((s.ended_ns - s.began_ns for s in self.context.spans if s.name == name), default=0) / 1e9


class ResponseTracker:
    """`send` that notes what goes out, and can be cut off."""

    def __init__(self, send: Send, record: RequestRecord) -> None:
        self._send = send
        self._record = record
        self.begun = self.ended = self.streamed = False
        self.cut_if: Callable[[], bool] | None = None
        """Once it is true, nothing more goes out."""

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
