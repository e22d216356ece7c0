"""One HTTP request on its way through: what the routes and the engine tell each other about it."""

from contextvars import ContextVar
from dataclasses import dataclass

from sdpo_ray.capture.conversation import Asked


@dataclass(slots=True)
class Exchange:
    """What a request asked, and what becomes of it. Made by `serve.routes`; written to by `serve.engine`."""

    asked: Asked
    recorded: bool
    """Whether its turn is to be recorded."""
    policy_version: int | None = None
    """Set when the engine's first output arrives."""
    receipt: bool = False
    """True once every turn of it is on disk."""


EXCHANGE: ContextVar[Exchange | None] = ContextVar("exchange", default=None)
