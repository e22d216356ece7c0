"""Errors of requests: raised anywhere below `serve.gateway.middleware`, which answers them in OpenAI's shape."""

import json
from collections.abc import Mapping

from starlette.responses import JSONResponse

from serve.asgi import Message, refuse


class RequestError(Exception):
    """Carries a status, a message for the client, and `reason`, a word for the counters."""

    def __init__(
        self, status: int, reason: str, text: str, kind: str, code: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self._kind = kind
        self._code = code
        self._headers = headers

    @property
    def reply(self) -> JSONResponse:
        """The error response, for a client that has received nothing yet."""
        return refuse(self.status, str(self), self._kind, self._headers, code=self._code)

    @property
    def last_event(self) -> Message:
        """The last event of a stream that has begun, as OpenAI sends errors in streams."""
        error = {"message": str(self), "type": self._kind, "param": None, "code": self._code}
        return {"type": "http.response.body", "body": f"data: {json.dumps({'error': error})}\n\n".encode()}


def no_key() -> RequestError:
    text = "this endpoint requires a known bearer key"
    headers = {"www-authenticate": "Bearer"}
    return RequestError(401, "auth", text, "authentication_error", "invalid_api_key", headers)


def over_limit(what: str, retry_after_s: int, headers: Mapping[str, str]) -> RequestError:
    """`what` is the limit that is reached: `requests`, `tokens` or `concurrent`."""
    unit = {"requests": "requests a minute", "tokens": "tokens a minute", "concurrent": "requests at once"}[what]
    text = f"this key has used up its {unit}; please try again in {retry_after_s} s"
    headers = {**headers, "retry-after": str(retry_after_s)}
    return RequestError(429, "rate", text, "rate_limit_error", "rate_limit_exceeded", headers)


def too_large(what: str, limit: str, *, status: int) -> RequestError:
    text = f"the request's {what} is larger than {limit}"
    return RequestError(status, "body", text, "invalid_request_error", "request_too_large", {"connection": "close"})


def too_slow(timeout_s: float) -> RequestError:
    text = f"the request's body did not arrive within {timeout_s:g} s"
    return RequestError(408, "body", text, "invalid_request_error", "request_timeout", {"connection": "close"})


def took_too_long(timeout_s: float) -> RequestError:
    text = f"the request was given up after {timeout_s:g} s; ask for fewer tokens, or stream"
    return RequestError(504, "timeout", text, "timeout_error", "timeout")


def internal_error() -> RequestError:
    text = "an internal error of the server; please try again"
    return RequestError(500, "internal", text, "server_error", "internal_error")
