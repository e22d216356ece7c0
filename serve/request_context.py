"""State of one HTTP request that the gateway, the API and the engine share."""

from collections.abc import Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import time_ns
from typing import Any

from sdpo_ray.capture.api_keys import DEFAULT_TENANT
from sdpo_ray.capture.chat_request import ChatRequest
from serve.asgi import Scope

_SCOPE_KEY = "sdpo_ray.request_context"


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """A wait of a request, nanoseconds since 1970. Made by `RequestContext`; read by `serve.gateway.request_record`."""

    name: str
    began_ns: int
    ended_ns: int


@dataclass(slots=True)
class RequestContext:
    """One accepted HTTP request. Made by `serve.gateway.middleware`; read by the routes, written to by the engine."""

    path: str
    request_id: str
    tenant: str = DEFAULT_TENANT
    key_id: str = ""
    """Id of the caller's API key; empty where none is required."""
    prompt_tokens: int = 0
    response_tokens: int = 0
    """Both as far as the engine has counted them."""
    policy_version: int | None = None
    """Set when the engine's first output arrives."""
    adapter: str = ""
    """Name of the personal policy that answers; empty for the shared one."""
    spans: list[RequestSpan] = field(default_factory=list)
    """Waits by name: `gate`, `engine`, `journal`; several of each where the request wants several responses."""

    def add_span(self, name: str, began_ns: int) -> None:
        """Add a wait that ends now."""
        self.spans.append(RequestSpan(name, began_ns, time_ns()))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAdapter:
    """A LoRA adapter in the engine's memory. Made by `serve.lora.lora_cache`; read by `serve.engine`."""

    name: str
    number: int
    """Positive, and never used for another adapter of this engine."""
    path: str


@dataclass(slots=True)
class ChatContext:
    """A generation request and its progress. Made by `serve.api.routes`; written to by `serve.engine`."""

    context: RequestContext
    request: ChatRequest | None
    """None for a completion of plain text, which is never a turn."""
    recorded: bool
    """Whether its turns are to be recorded."""
    storing: Coroutine[Any, Any, bool] | None = None
    """From the engine's last output until it is awaited: gives whether every turn is on disk."""
    receipt: bool = False
    """True once every turn is on disk."""
    tool_use: Mapping[str, Any] | None = None
    """The request's fields about tools, where the response may call them."""
    release_version: int | None = None
    """Version of the release whose adapter answers; None for the engine's own weights, whose version vLLM reports."""
    admitted: bool = False
    """Whether part of the request is in the engine: the rest passes the gate and uses the same policy."""
    adapter: LoadedAdapter | None = None
    """The adapter that answers, set when the request is admitted."""


CHAT_CONTEXT: ContextVar[ChatContext | None] = ContextVar("chat_context", default=None)


def request_context_of(scope: Scope) -> RequestContext:
    """Return the context that `serve.gateway.middleware` put into an ASGI scope."""
    context: RequestContext = scope[_SCOPE_KEY]
    return context


def with_request_context(scope: Scope, context: RequestContext) -> Scope:
    """Return a copy of the scope that holds the context."""
    return {**scope, _SCOPE_KEY: context}
