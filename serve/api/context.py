"""The replica's parts that the routes use."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sdpo_ray.capture.recorder import Recorder
from sdpo_ray.chat import ControlTokens
from sdpo_ray.config import CaptureConfig
from serve.api.models import ServedModel
from serve.asgi import Receive, Scope, Send
from serve.request_context import ChatContext


class ChatRouter(Protocol):
    """Routes some chats to another engine: `serve.canary.router` during a canary release."""

    async def take(self, chat: ChatContext, body: bytes, scope: Scope, receive: Receive, send: Send) -> bool:
        """Return whether it answered; if not, nothing was sent. `body` is what the client sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """Made by `serve.deployment`; read by `serve.api.routes`, `serve.api.response` and `serve.api.feedback`."""

    recorder: Recorder | None
    """None on the evaluation engine, which records nothing."""
    capture: CaptureConfig
    control: ControlTokens
    served: Callable[[], dict[str, str]]
    """Returns headers about the policy that is served now."""
    model: ServedModel
    calls_tools: bool = True
    """False where `serve.tool_parser` is none: requests with `tool_choice` auto then get text alone."""
    canary: ChatRouter | None = None
    """None where no canary release is possible."""
