"""Chats through the real middleware, over an engine that repeats a recording."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers

from sdpo_ray.capture.apikeys import ApiKeys
from sdpo_ray.config import Capture, Tenant
from sdpo_ray.records import Consent, Turn
from serve.auth import UsersEntrance
from tests.recorded import MemoryLog, client_of, recorder_of, text_of

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
    capture = Capture(tenants={"private": Tenant(consent=Consent.NONE)})
    counter = Counter(tmp_path, entrance=UsersEntrance(tmp_path / "api_keys.json"), capture=capture)
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
    entrance = Entrances(["acme", "umbrella"])
    counter = Counter(tmp_path, entrance=entrance)
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

    def tenant(self, path: str, headers: Headers) -> str | None:
        return next(self._tenants)


@pytest.mark.parametrize(("path", "status"), [("/v1/nothing", 404), ("/v1/chat/completions", 405), ("/health", 200)])
def test_other_routes_and_methods_are_refused(tmp_path: Path, path: str, status: int) -> None:
    async def get() -> httpx.Response:
        async with client_of(recorder_of(tmp_path, MemoryLog()), lambda _: "") as client:
            return await client.get(path)

    assert asyncio.run(get()).status_code == status
