"""What the routes know of their replica."""

from collections.abc import Callable
from dataclasses import dataclass

from sdpo_ray.capture.recorder import Recorder
from sdpo_ray.chat import ControlTokens
from sdpo_ray.config import Capture


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Made by `serve.policy`; read by `serve.routes`, `serve.replies` and `serve.feedback`."""

    recorder: Recorder | None
    """None on the examination engine, which records nobody."""
    capture: Capture
    control: ControlTokens
    served: Callable[[], dict[str, str]]
    """Headers that tell what is served now."""
