"""One HTTP request on its way through: what the layers of an answer tell each other about it."""

from collections.abc import Coroutine, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import time_ns
from typing import Any

from sdpo_ray.capture.api_keys import DEFAULT_TENANT
from sdpo_ray.capture.chat_request import ChatRequest
from serve.asgi import Scope

_VISIT = "sdpo_ray.visit"


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """Part of a visit, in nanoseconds since 1970. Made where it is waited for; read by `serve.gateway.request_record`."""

    name: str
    began_ns: int
    ended_ns: int


@dataclass(slots=True)
class RequestContext:
    """One request that was let in. Made by `serve.gateway.middleware`; the routes read it, the engine writes to it."""

    path: str
    request_id: str
    tenant: str = DEFAULT_TENANT
    key_id: str = ""
    """Of the API key that was shown; empty where none is asked for."""
    prompt_tokens: int = 0
    response_tokens: int = 0
    """Both as far as the engine has counted them."""
    policy_version: int | None = None
    """Set when the engine's first output arrives."""
    adapter: str = ""
    """The personal policy that answers; empty for the shared one."""
    stages: list[RequestSpan] = field(default_factory=list)
    """What it waited for and where: `gate`, `engine`, `journal`; several of each where several answers were asked."""

    def passed(self, name: str, began_ns: int) -> None:
        """Note a stage that ends now."""
        self.stages.append(RequestSpan(name, began_ns, time_ns()))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAdapter:
    """A LoRA adapter as the engine knows it. Made by `serve.lora.lora_cache`."""

    name: str
    number: int
    """Positive, and never used again."""
    path: str


@dataclass(slots=True)
class ChatContext:
    """What a chat asked, and what becomes of it. Made by `serve.api.routes`; written to by `serve.engine.recording_engine`."""

    visit: RequestContext
    asked: ChatRequest | None
    """None for a completion of plain text, which is nobody's turn."""
    recorded: bool
    """Whether its turn is to be recorded."""
    storing: Coroutine[Any, Any, bool] | None = None
    """From the engine's last output until somebody awaits it: whether every turn of it is on disk."""
    receipt: bool = False
    """True once every turn of it is on disk."""
    tool_use: Mapping[str, Any] | None = None
    """What the request says of tools, where its answer may call them."""
    release_version: int | None = None
    """Of the release whose adapter answers; None where it is the engine's own weights, which it names itself."""
    admitted: bool = False
    """Whether some of it is in the engine already: the rest goes in beside it, and is answered by the same policy."""
    adapter: LoadedAdapter | None = None
    """What answers it besides the engine's own weights, from the moment it is admitted."""


EXCHANGE: ContextVar[ChatContext | None] = ContextVar("exchange", default=None)


def request_context_of(scope: Scope) -> RequestContext:
    """The visit that `serve.gateway.middleware` put into an ASGI scope."""
    visit: RequestContext = scope[_VISIT]
    return visit


def with_request_context(scope: Scope, visit: RequestContext) -> Scope:
    """The scope, with the visit in it for those behind."""
    return {**scope, _VISIT: visit}
