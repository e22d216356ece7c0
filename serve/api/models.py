"""`GET /v1/models` and `/v1/models/{id}`: the model under the name that clients use.

vLLM's own `/v1/models` shows the directory of the weights, and it has no route for one model.
"""

from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse

from serve.asgi import refuse

MODELS = "/v1/models"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """Made by `serve.deployment`; read by `serve.api.routes`."""

    name: str
    max_model_len: int
    """Longest prompt plus response, in tokens."""
    since_s: int
    """Unix time."""

    def card(self) -> dict[str, Any]:
        """Return OpenAI's model object, with vLLM's `max_model_len`."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.since_s,
            "owned_by": "sdpo-ray",
            "max_model_len": self.max_model_len,
        }


def is_about_models(path: str) -> bool:
    return path == MODELS or path.startswith(f"{MODELS}/")


def reply_about_models(path: str, model: ServedModel) -> JSONResponse:
    """Return the list, one model, or 404 for a name that is not served."""
    name = path.removeprefix(MODELS).removeprefix("/")
    if not name:
        return JSONResponse({"object": "list", "data": [model.card()]})
    if name == model.name:
        return JSONResponse(model.card())
    return refuse(404, f"there is no model {name!r} here", "not_found_error", code="model_not_found")
