"""Chats through the real middleware, over an engine that repeats a recording."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from sdpo_ray.capture.api_keys import ApiKeys
from sdpo_ray.config import CaptureConfig, TenantConfig
from sdpo_ray.records import Consent, Turn
from serve.asgi import Receive, Scope, Send
from serve.gateway.auth import Caller, UserAuthenticator
from serve.request_context import ChatContext
from tests.support.recorded_engine import MemoryLog, client_of, recorder_of, text_of

QUESTION = {"model": "policy", "messages": [{"role": "user", "content": "Capital of France?"}], "user": "alice"}


class Counter:
    """Where chats are answered with one sentence."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.log = MemoryLog()
        self.recorder = recorder_of(folder, self.log)
        self._options = options

    def ask(self, body: Any = QUESTION, **headers: str) -> httpx.Response:
        async def send() -> httpx.Response:
            answer = "Paris is the capital of France, and has been for a long time."
            async with client_of(self.recorder, lambda _: answer, **self._options) as client:
                return await client.post("/v1/chat/completions", json=body, headers=headers)

        return asyncio.run(send())

    @property
    def turns(self) -> list[Turn]:
        return [event for event in self.log.events if isinstance(event, Turn)]


@pytest.mark.parametrize("stream", [False, True])
def test_a_receipt_names_the_turn_that_was_stored(tmp_path: Path, stream: bool) -> None:
    counter = Counter(tmp_path)
    reply = counter.ask(QUESTION | {"stream": stream})
    (turn,) = counter.turns
    assert reply.headers["x-sdpo-turn-id"] == turn.turn_id
    assert reply.headers["x-sdpo-policy-version"] == "0"
    assert text_of(reply) == turn.response
    assert (turn.tenant, turn.consent) == ("default", Consent.TRAIN)


def test_a_stream_takes_its_promise_back_and_the_next_one_makes_none(tmp_path: Path) -> None:
    counter = Counter(tmp_path)
    counter.log.error = OSError(28, "No space left on device")
    reply = counter.ask(QUESTION | {"stream": True})
    assert reply.headers["x-sdpo-turn-id"]
    assert reply.text.endswith(": x-sdpo-turn-id not stored\n\ndata: [DONE]\n\n")
    assert "x-sdpo-turn-id" not in counter.ask(QUESTION | {"stream": True}).headers
    counter.log.error = None
    assert "x-sdpo-turn-id" in counter.ask().headers


def test_a_key_names_the_tenant_whose_default_of_consent_holds(tmp_path: Path) -> None:
    key, keys = ApiKeys.load(tmp_path / "api_keys.json").add("acme")
    private, _ = keys.add("private")
    capture = CaptureConfig(tenants={"private": TenantConfig(consent=Consent.NONE)})
    counter = Counter(tmp_path, authenticator=UserAuthenticator(tmp_path / "api_keys.json"), capture=capture)
    for wrong in ({}, {"authorization": "Bearer sdpo-nonsense"}):
        refused = counter.ask(**wrong)
        assert refused.status_code == 401
        assert refused.json()["error"]["type"] == "authentication_error"
    assert counter.ask(authorization=f"Bearer {key}").headers["x-sdpo-turn-id"] == counter.turns[0].turn_id
    kept_out = counter.ask(authorization=f"Bearer {private}")
    assert kept_out.status_code == 200
    assert "x-sdpo-turn-id" not in kept_out.headers
    counter.ask(**{"authorization": f"Bearer {private}", "x-sdpo-consent": "train"})
    assert [turn.tenant for turn in counter.turns] == ["acme", "private"]
    assert counter.recorder.counters.values == {"recorded": 2, "not_recorded.no_consent": 1}


def test_one_person_s_words_with_two_tenants_share_no_key_of_pairing(tmp_path: Path) -> None:
    authenticator = Entrances(["acme", "umbrella"])
    counter = Counter(tmp_path, authenticator=authenticator)
    for _ in range(2):
        counter.ask()
    one, other = counter.turns
    assert (one.tenant, other.tenant) == ("acme", "umbrella")
    assert (one.messages, one.response) == (other.messages, other.response)
    assert {one.keys.prompt, one.keys.continuation}.isdisjoint({other.keys.prompt, other.keys.continuation})


class Entrances:
    """Lets one caller after the other in, each as another tenant."""

    def __init__(self, tenants: list[str]) -> None:
        self._tenants = iter(tenants)

    def caller(self, path: str, headers: Headers) -> Caller | None:
        return Caller(tenant=next(self._tenants))


def sent(folder: Path, method: str, path: str, body: Any = None, **options: Any) -> tuple[httpx.Response, list[Any]]:
    """A reply, and the bodies that the engine was given."""
    seen: list[Any] = []

    def answer(request: Any) -> str:
        seen.append(request)
        return "Paris."

    async def send() -> httpx.Response:
        recorder = options.pop("recorder", None) or recorder_of(folder, MemoryLog())
        async with client_of(recorder, answer, **options) as client:
            return await client.request(method, path, json=body)

    return asyncio.run(send()), seen


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v1/completions", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/v1/modelsx", 404),
        ("POST", "/v1/load_lora_adapter", 404),
    ],
)
def test_other_routes_and_methods_are_refused_in_openais_shape(
    tmp_path: Path, method: str, path: str, status: int
) -> None:
    reply, _ = sent(tmp_path, method, path, {})
    assert reply.status_code == status
    assert reply.json()["error"].keys() == {"message", "type", "param", "code"}
    assert reply.headers.get("allow") == ({"GET": "POST", "POST": "GET"}[method] if status == 405 else None)


def test_models_are_the_one_that_is_served_and_tell_no_path(tmp_path: Path) -> None:
    listed, _ = sent(tmp_path, "GET", "/v1/models")
    (card,) = listed.json()["data"]
    assert card == {
        "id": "policy",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "sdpo-ray",
        "max_model_len": 512,
    }
    assert sent(tmp_path, "GET", "/v1/models/policy")[0].json() == card
    for unknown in ("gpt-5", "policy/x", "policy@v1"):
        reply, _ = sent(tmp_path, "GET", f"/v1/models/{unknown}")
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("stream", [False, True])
def test_a_completion_is_answered_and_is_no_turn(tmp_path: Path, stream: bool) -> None:
    log = MemoryLog()
    recorder = recorder_of(tmp_path, log)
    body = {"model": "policy", "prompt": ["hi<|im_end|>", "ho"], "stream": stream, "user": "alice"}
    reply, (read,) = sent(tmp_path, "POST", "/v1/completions", body, recorder=recorder)
    assert reply.status_code == 200
    assert reply.headers["x-sdpo-policy-version"] == "0"
    assert "x-sdpo-turn-id" not in reply.headers
    assert read["prompt"] == ["hi<\u200b|im_end|>", "ho"]
    assert log.events == []
    assert recorder.counters.values == {"not_recorded.completion": 1}


def test_token_ids_of_a_completion_are_the_clients_own(tmp_path: Path) -> None:
    _, (read,) = sent(tmp_path, "POST", "/v1/completions", {"prompt": [[1, 2], [3]], "echo": True})
    assert read == {"prompt": [[1, 2], [3]], "echo": True}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_what_is_no_json_object_is_refused_before_the_engine(tmp_path: Path, path: str) -> None:
    for body in ([], "text", 7, None):
        reply, seen = sent(tmp_path, "POST", path, body)
        assert (reply.status_code, seen) == (400, [])


TOOLS = [{"type": "function", "function": {"name": "weather<|im_end|>", "parameters": {}}}]


@pytest.mark.parametrize(
    ("calls_tools", "asked", "choice"),
    [
        (True, {}, None),
        (False, {}, "none"),
        (False, {"tool_choice": "auto"}, "none"),
        (False, {"tool_choice": "required"}, "required"),
    ],
)
def test_without_a_parser_of_calls_a_choice_left_to_us_is_to_call_none(
    tmp_path: Path, calls_tools: bool, asked: dict[str, Any], choice: str | None
) -> None:
    body = QUESTION | {"tools": TOOLS} | asked
    _, (read,) = sent(tmp_path, "POST", "/v1/chat/completions", body, calls_tools=calls_tools)
    assert read.get("tool_choice") == choice


@pytest.mark.parametrize(
    ("asked", "use"),
    [
        ({}, None),
        ({"tools": []}, None),
        ({"tools": TOOLS, "tool_choice": "none"}, None),
        ({"tools": TOOLS}, {"tools"}),
        ({"tools": TOOLS, "tool_choice": "auto", "stop": ["."]}, {"tools", "tool_choice"}),
        ({"tools": TOOLS, "parallel_tool_calls": False}, {"tools", "parallel_tool_calls"}),
    ],
)
def test_the_engine_knows_of_tools_where_an_answer_may_call_them(tmp_path: Path, asked: Any, use: Any) -> None:
    canary = Taking()
    sent(tmp_path, "POST", "/v1/chat/completions", QUESTION | asked, canary=canary)
    (chat,) = canary.exchanges
    assert (chat.tool_use and set(chat.tool_use)) == use
    assert "<|im_end|>" not in json.dumps(chat.tool_use)


class Taking:
    """A canary router that answers every chat itself."""

    def __init__(self) -> None:
        self.exchanges: list[ChatContext] = []
        self.bodies: list[bytes] = []

    async def take(self, chat: ChatContext, body: bytes, scope: Scope, receive: Receive, send: Send) -> bool:
        self.exchanges.append(chat)
        self.bodies.append(body)
        await JSONResponse({"taken": True})(scope, receive, send)
        return True


def test_a_canary_is_offered_chats_in_the_clients_own_words_and_nothing_else(tmp_path: Path) -> None:
    canary = Taking()
    body = QUESTION | {"messages": [{"role": "user", "content": "hi<|im_end|>"}]}
    reply, seen = sent(tmp_path, "POST", "/v1/chat/completions", body, canary=canary)
    assert (reply.json(), seen) == ({"taken": True}, [])
    assert json.loads(canary.bodies[0]) == body
    _, seen = sent(tmp_path, "POST", "/v1/completions", {"prompt": "hi"}, canary=canary)
    assert len(seen) == len(canary.bodies) == 1
