"""A reply's head waits for its first body, and says what that says."""

import asyncio
import json
from typing import Any

from sdpo_ray.chat import ControlTokens
from sdpo_ray.config import CaptureConfig
from sdpo_ray.headers import POLICY_VERSION
from serve.api.context import ApiContext
from serve.api.models import ServedModel
from serve.api.response import ChatResponse
from serve.request_context import ChatContext, RequestContext

SSE = {"content-type": "text/event-stream; charset=utf-8"}
DOOR = ApiContext(
    recorder=None,
    capture=CaptureConfig(),
    control=ControlTokens([]),
    served=lambda: {POLICY_VERSION: "7"},
    model=ServedModel(name="policy", max_model_len=512, since_s=1_700_000_000),
)
REFUSED = {"error": {"message": "busy", "type": "Service Unavailable", "param": None, "code": 503}}


def sent(*bodies: bytes, headers: dict[str, str]) -> list[dict[str, Any]]:
    """What a client gets of a 200 with these bodies."""
    out: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        out.append(dict(message))

    async def run() -> None:
        reply = ChatResponse(
            send, ChatContext(context=RequestContext(path="/", request_id="r"), request=None, recorded=False), DOOR
        )
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await reply({"type": "http.response.start", "status": 200, "headers": raw})
        for body in bodies:
            await reply({"type": "http.response.body", "body": body, "more_body": True})
        await reply({"type": "http.response.body", "body": b"", "more_body": False})

    asyncio.run(run())
    return out


def event(said: Any) -> bytes:
    return f"data: {json.dumps(said)}\n\n".encode()


def body_of(out: list[dict[str, Any]]) -> bytes:
    return b"".join(message["body"] for message in out[1:])


def test_a_stream_that_only_has_an_error_to_say_is_that_error():
    out = sent(event(REFUSED), b"data: [DONE]\n\n", headers=SSE)
    assert out[0]["status"] == 503
    headers = dict(out[0]["headers"])
    assert headers[b"content-type"] == b"application/json"
    assert headers[POLICY_VERSION.encode()] == b"7"
    assert json.loads(body_of(out)) == REFUSED
    assert [message["more_body"] for message in out[1:]] == [False]


def test_an_error_after_the_first_token_stays_in_the_stream():
    bodies = (event({"choices": []}), event(REFUSED), b"data: [DONE]\n\n")
    out = sent(*bodies, headers=SSE)
    assert out[0]["status"] == 200
    assert body_of(out) == b"".join(bodies)


def test_a_plain_reply_may_begin_as_it_likes():
    out = sent(event(REFUSED), headers={"content-type": "text/plain"})
    assert out[0]["status"] == 200
    assert body_of(out) == event(REFUSED)
