"""The first layer around the app: what it lets in, what it refuses and in which words, and what it notes of it."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import time_ns
from typing import Any

import httpx
import openai
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from starlette.responses import JSONResponse, StreamingResponse

from sdpo_ray.capture.api_keys import ApiKeys
from sdpo_ray.config import LimitsConfig, ServeConfig
from serve.asgi import ASGIApp, Message, Receive, Scope, Send, read_body
from serve.gateway.auth import UserAuthenticator
from serve.gateway.middleware import GatewayMiddleware
from serve.gateway.observability import Observability
from serve.request_context import request_context_of
from tests.support.recorded_engine import health_of

CHAT = "/v1/chat/completions"
PIECE = 'data: {"choices": [{"index": 0, "delta": {"content": "Par"}}]}\n\n'


class House:
    """A front before an app of the test's, and its numbers."""

    def __init__(self, app: ASGIApp, keys: Path = Path("no such file"), **config: Any) -> None:
        self._registry = CollectorRegistry()
        serve = ServeConfig(**config)
        observability = Observability(serve, replica="r1", registry=self._registry)
        self.front = GatewayMiddleware(app, UserAuthenticator(keys, serve.limits), observability, health_of(None))

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(app=self.front), base_url="http://house")

    def ask(self, path: str = CHAT, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with self.client() as client:
                return await client.post(path, **options)

        return asyncio.run(send())

    def numbers(self) -> str:
        return generate_latest(self._registry).decode()


@pytest.fixture(autouse=True)
def _half_past(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the middle of a minute, and stays so."""
    monkeypatch.setattr(time, "time", lambda: 1_800_000_030.0)


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """The log, as Ray Serve's own formatter writes it."""
    from ray._common.formatters import JSONFormatter

    written: list[dict[str, Any]] = []
    handler = logging.Handler()
    handler.emit = lambda record: written.append(json.loads(JSONFormatter().format(record)))  # type: ignore[method-assign]
    logger = logging.getLogger("ray.serve")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield written
    logger.removeHandler(handler)
    logger.setLevel(level)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Echoes the request's body and context."""
    context = request_context_of(scope)
    began_ns = time_ns()
    body = await read_body(receive)
    context.prompt_tokens, context.response_tokens, context.policy_version = 30, 20, 7
    context.add_span("gate", began_ns)
    said = {"size": len(body or b""), "tenant": context.tenant, "id": dict(scope["headers"])[b"x-request-id"].decode()}
    await JSONResponse(said)(scope, receive, send)


async def slow(scope: Scope, receive: Receive, send: Send) -> None:
    await read_body(receive)
    await asyncio.sleep(60)


async def slow_stream(scope: Scope, receive: Receive, send: Send) -> None:
    await read_body(receive)

    async def pieces() -> AsyncIterator[str]:
        yield PIECE
        await asyncio.sleep(60)

    await StreamingResponse(pieces(), media_type="text/event-stream")(scope, receive, send)


def test_a_request_passes_with_an_id_that_goes_both_ways() -> None:
    house = House(echo)
    given = house.ask(content=b"abc", headers={"x-request-id": "req_1.a-B"})
    assert given.json() == {"size": 3, "tenant": "default", "id": "req_1.a-B"}
    # Ray Serve sends it back, around us.
    assert "x-request-id" not in given.headers
    for odd in ("a b", "é", "x" * 129, "<script>", ""):
        reply = house.ask(content=b"", headers={"x-request-id": odd.encode()})
        made = reply.headers["x-request-id"]
        assert len(made) == 32
        assert reply.json()["id"] == made


def test_a_body_over_the_limit_is_refused_by_its_head_and_a_chunked_one_where_it_passes_it() -> None:
    house = House(echo, max_body_mib=1)
    pulled = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal pulled
        for _ in range(64):
            pulled += 1
            yield b"x" * (64 << 10)

    for content in (b" " * ((1 << 20) + 1), chunks()):
        reply = house.ask(content=content)
        assert reply.status_code == 413
        assert reply.json()["error"] == {
            "message": "the request's body is larger than 1 MiB",
            "type": "invalid_request_error",
            "param": None,
            "code": "request_too_large",
        }
    assert pulled == 17
    assert house.ask(content=b" " * (1 << 20)).json()["size"] == 1 << 20
    assert 'sdpo_refused_total{reason="body"} 2.0' in house.numbers()


def test_a_head_that_is_too_large_is_refused() -> None:
    reply = House(echo).ask(headers={f"x-{n}": "v" * 1000 for n in range(40)})
    assert reply.status_code == 431
    assert reply.json()["error"]["message"] == "the request's head is larger than 32 KiB"


def test_a_body_that_trickles_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.gateway.middleware.BODY_TIMEOUT_S", 0.05)

    async def never_done() -> AsyncIterator[bytes]:
        while True:
            yield b"{"
            await asyncio.sleep(0.01)

    reply = House(echo).ask(content=never_done())
    assert reply.status_code == 408
    assert reply.json()["error"]["code"] == "request_timeout"


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    house = House(slow, request_timeout_s=0.05)
    reply = house.ask(content=b"{}")
    assert reply.status_code == 504
    assert reply.json()["error"]["code"] == "timeout"
    assert f'sdpo_requests_total{{outcome="timeout",route="{CHAT}",status="504"}} 1.0' in house.numbers()


def test_a_stream_that_takes_too_long_ends_with_an_error_that_openai_s_client_raises() -> None:
    house = House(slow_stream, request_timeout_s=0.05)
    reply = house.ask(content=b"{}")
    assert reply.status_code == 200
    assert reply.text.startswith(PIECE)
    assert json.loads(reply.text.removeprefix(PIECE).removeprefix("data: "))["error"]["code"] == "timeout"
    client = openai.AsyncOpenAI(base_url="http://house/v1", api_key="k", http_client=house.client(), max_retries=0)

    async def read() -> list[str]:
        stream = await client.chat.completions.create(model="m", messages=[], stream=True)
        return [chunk.choices[0].delta.content or "" async for chunk in stream]

    with pytest.raises(openai.APIError, match=r"given up after 0\.05 s"):
        asyncio.run(read())
    assert 'outcome="timeout"' in house.numbers()


def test_what_the_app_still_says_when_its_time_is_over_is_not_sent() -> None:
    async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await JSONResponse({"choices": []})(scope, receive, send)

    assert House(stubborn, request_timeout_s=0.05).ask(content=b"{}").status_code == 504


def test_an_internal_error_has_openai_s_shape_and_its_message_is_in_no_log(lines: list[dict[str, Any]]) -> None:
    word = str(4700 + 11)

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError(word)

    house = House(broken)
    reply = house.ask(content=b"{}")
    assert reply.status_code == 500
    error = reply.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert f'sdpo_requests_total{{outcome="error",route="{CHAT}",status="500"}} 1.0' in house.numbers()
    assert 'sdpo_refused_total{reason="internal"} 1.0' in house.numbers()
    assert "a request ended in ValueError" in lines[0]["message"]
    assert word not in json.dumps(lines) + reply.text


def test_a_stream_in_which_something_goes_wrong_ends_with_an_error() -> None:
    async def breaking(scope: Scope, receive: Receive, send: Send) -> None:
        async def pieces() -> AsyncIterator[str]:
            yield PIECE
            raise ValueError

        await StreamingResponse(pieces(), media_type="text/event-stream")(scope, receive, send)

    house = House(breaking)
    reply = house.ask(content=b"{}")
    assert reply.text.startswith(PIECE)
    assert json.loads(reply.text.removeprefix(PIECE).removeprefix("data: "))["error"]["code"] == "internal_error"
    assert f'sdpo_requests_total{{outcome="error",route="{CHAT}",status="200"}} 1.0' in house.numbers()


def test_a_key_has_limits_of_its_own_or_the_run_s(tmp_path: Path) -> None:
    path = tmp_path / "api_keys.json"
    generous, keys = ApiKeys.load(path).add("acme", requests_per_minute=3)
    plain, _ = keys.add("umbrella")
    free, _ = keys.add("house", requests_per_minute=0)
    house = House(echo, keys=path, limits=LimitsConfig(requests_per_minute=1))

    def statuses(key: str) -> list[int]:
        return [house.ask(content=b"", headers={"authorization": f"Bearer {key}"}).status_code for _ in range(4)]

    assert statuses(generous) == [200, 200, 200, 429]
    assert statuses(plain) == [200, 429, 429, 429]
    assert statuses(free) == [200] * 4
    assert house.ask(content=b"").status_code == 401
    numbers = house.numbers()
    assert 'sdpo_refused_total{reason="rate"} 4.0' in numbers
    assert 'sdpo_refused_total{reason="auth"} 1.0' in numbers


def test_over_the_limit_openai_s_client_gets_what_it_waits_by(tmp_path: Path) -> None:
    key, _ = ApiKeys.load(tmp_path / "keys.json").add("acme", requests_per_minute=1)
    house = House(echo, keys=tmp_path / "keys.json")
    client = openai.AsyncOpenAI(base_url="http://house/v1", api_key=key, http_client=house.client(), max_retries=0)

    async def twice() -> None:
        for _ in range(2):
            await client.chat.completions.create(model="m", messages=[])

    with pytest.raises(openai.RateLimitError) as raised:
        asyncio.run(twice())
    headers = raised.value.response.headers
    assert (raised.value.type, raised.value.code) == ("rate_limit_error", "rate_limit_exceeded")
    # In 30 s this minute becomes the one before, of which a part counts from then on.
    assert headers["retry-after"] == "31"
    assert headers["x-ratelimit-limit-requests"] == "1"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "90.000s"


def test_tokens_are_charged_for_streams_too_and_for_disconnected_clients() -> None:
    async def speaks(scope: Scope, receive: Receive, send: Send) -> None:
        request_context_of(scope).response_tokens += 40
        await slow_stream(scope, receive, send)

    house = House(speaks, limits=LimitsConfig(tokens_per_minute=80, concurrent=1), request_timeout_s=60)

    async def hang_up() -> httpx.Response:
        for _ in range(2):
            begun = asyncio.Event()

            async def send(message: Message, begun: asyncio.Event = begun) -> None:
                if message["type"] == "http.response.body":
                    begun.set()

            task = asyncio.ensure_future(house.front(scope_of(CHAT), staying(), send))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with house.client() as client:
            return await client.post(CHAT)

    reply = asyncio.run(hang_up())
    assert reply.status_code == 429
    assert "tokens a minute" in reply.json()["error"]["message"]
    assert reply.headers["x-ratelimit-remaining-tokens"] == "0"
    assert f'sdpo_requests_total{{outcome="aborted",route="{CHAT}",status="200"}} 2.0' in house.numbers()


def scope_of(path: str, kind: str = "http") -> Scope:
    return {"type": kind, "method": "POST", "path": path, "root_path": "", "headers": [], "query_string": b""}


def staying() -> Receive:
    """Of a client that sends a small body, and does not leave."""
    bodies: list[Message] = [{"type": "http.request", "body": b"{}", "more_body": False}]

    async def receive() -> Message:
        return bodies.pop() if bodies else await asyncio.Future()

    return receive


def test_a_web_socket_is_closed_before_the_app_sees_it() -> None:
    async def nobody(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("it was let in")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(House(nobody).front(scope_of("/v1/realtime", "websocket"), staying(), send))
    assert sent == [{"type": "websocket.close"}]


def test_a_log_line_has_the_caller_and_the_times_and_no_user_text(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    key, keys = ApiKeys.load(tmp_path / "keys.json").add("acme")
    house = House(echo, keys=tmp_path / "keys.json")
    canary = "the moon is made of 4711"
    headers = {"authorization": f"Bearer {key}", "x-request-id": canary, "user-agent": canary, "x-sdpo-user": canary}
    house.ask(f"{CHAT}?q={canary}", json={"messages": [{"role": "user", "content": canary}]}, headers=headers)
    house.ask(f"/{canary}", content=canary.encode())
    (line, refused) = lines
    assert {name: line[name] for name in ("message", "replica", "method", "route", "status", "outcome")} == {
        "message": "request",
        "replica": "r1",
        "method": "POST",
        "route": CHAT,
        "status": 200,
        "outcome": "ok",
    }
    assert (line["tenant"], line["key_id"]) == ("acme", keys.keys[0].key_id)
    assert (line["policy_version"], line["prompt_tokens"], line["response_tokens"]) == (7, 30, 20)
    assert 0 <= line["gate_s"] <= line["seconds"] < 60
    assert (refused["route"], refused["status"], refused["reason"]) == ("other", 401, "auth")
    assert "4711" not in json.dumps(lines)
    assert key not in json.dumps(lines)


def test_numbers_have_few_labels_whatever_is_asked_for(lines: list[dict[str, Any]]) -> None:
    house = House(echo)
    for n in range(30):
        house.ask(f"/v1/{n}", content=b"")
    house.ask("/health")
    numbers = house.numbers()
    assert 'sdpo_requests_total{outcome="ok",route="other",status="200"} 30.0' in numbers
    assert 'sdpo_request_seconds_count{route="other"} 30.0' in numbers
    assert "sdpo_gate_wait_seconds_count 30.0" in numbers
    assert "sdpo_requests_under_way 0.0" in numbers
    assert 'route="/health",status="405"' in numbers


def test_a_probe_that_finds_all_well_leaves_no_line(lines: list[dict[str, Any]]) -> None:
    house = House(echo)

    async def probe() -> list[int]:
        async with house.client() as client:
            return [(await client.get(path)).status_code for path in ("/health", "/ready")]

    assert asyncio.run(probe()) == [200, 200]
    assert lines == []
