"""One HTTP request on its way through: what the layers of an answer tell each other about it."""

from contextvars import ContextVar
from dataclasses import dataclass

from sdpo_ray.capture.apikeys import DEFAULT_TENANT
from sdpo_ray.capture.conversation import Asked
from serve.asgi import Scope

_VISIT = "sdpo_ray.visit"


@dataclass(slots=True)
class Visit:
    """One request that was let in. Made by `serve.front`; read by `serve.routes`; written to by `serve.engine`."""

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


@dataclass(slots=True)
class Exchange:
    """What a chat asked, and what becomes of it. Made by `serve.routes`; written to by `serve.engine`."""

    visit: Visit
    asked: Asked | None
    """None for a completion of plain text, which is nobody's turn."""
    recorded: bool
    """Whether its turn is to be recorded."""
    receipt: bool = False
    """True once every turn of it is on disk."""


EXCHANGE: ContextVar[Exchange | None] = ContextVar("exchange", default=None)


def visit_of(scope: Scope) -> Visit:
    """The visit that `serve.front` put into an ASGI scope."""
    visit: Visit = scope[_VISIT]
    return visit


def with_visit(scope: Scope, visit: Visit) -> Scope:
    """The scope, with the visit in it for those behind."""
    return {**scope, _VISIT: visit}
