"""Chats passed on to the canary: headers, usage, streams, and every way in which the canary can fail."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from sdpo_ray.config import parse_run
from sdpo_ray.headers import POLICY_VERSION, TURN_ID
from tests.support.canary import (
    CANDIDATE_TEXT,
    CHAMPION_TEXT,
    DONE,
    USAGE_CHUNK,
    FakeCanary,
    UsersApp,
    ask,
    chat_body,
    chunk,
    users_of,
    with_client,
)
from tests.support.recorded_engine import text_of


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[str]:
    """The app on a port of its own, so that connections and hang-ups are real. Gives its URL."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    )
    serving = asyncio.ensure_future(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


@pytest.mark.parametrize("stream", [False, True])
def test_a_candidates_conversation_is_answered_by_the_canary_with_its_headers(users_app: UsersApp, stream: bool):
    (user,) = users_of(users_app, candidates=True)
    canary = FakeCanary()
    reply = ask(
        users_app, canary, chat_body(user, stream=stream, temperature=0.5), **{"x-sdpo-tenant": "somebody-else"}
    )
    assert reply.status_code == 200
    assert text_of(reply) == ("0 1 2 " if stream else CANDIDATE_TEXT)
    assert reply.headers[POLICY_VERSION] == "7"
    assert reply.headers[TURN_ID] == "turn-1"
    assert "x-other" not in reply.headers
    ((request, headers, path),) = canary.asked
    assert path == "/canary/v1/chat/completions"
    assert {name: request[name] for name in (*chat_body(), "temperature")} == chat_body(user, temperature=0.5)
    assert headers["authorization"] == f"Bearer {users_app.layout.canary_key.read_text()}"
    assert (headers["x-sdpo-tenant"], headers["x-sdpo-consent"]) == ("default", "train")
    assert users_app.log.events == []
    assert users_app.counted == {"candidate": 1}


def test_consent_request_id_and_conversation_id_are_passed_on(users_app: UsersApp):
    (user,) = users_of(users_app, candidates=True)
    canary = FakeCanary()
    ask(users_app, canary, chat_body(user, metadata={"consent": "none"}), **{"x-request-id": "one"})
    ((_, headers, _),) = canary.asked
    assert (headers["x-sdpo-consent"], headers["x-request-id"]) == ("none", "one")

    async def named(client: httpx.AsyncClient) -> None:
        for number in range(20):
            given = {"x-sdpo-conversation-id": f"c{number}"}
            await client.post("/v1/chat/completions", json=chat_body(), headers=given)

    canary = FakeCanary()
    with_client(users_app, canary, named)
    assert 0 < len(canary.asked) < 20
    assert all(headers["x-sdpo-conversation-id"].startswith("c") for _, headers, _ in canary.asked)


def test_usage_is_always_requested_and_shown_only_to_clients_that_ask_for_it(users_app: UsersApp):
    (user,) = users_of(users_app, candidates=True)
    plain = ask(users_app, FakeCanary(), chat_body(user, stream=True))
    assert b"usage" not in plain.content
    assert plain.content.endswith(DONE)
    asked_for = ask(users_app, FakeCanary(), chat_body(user, stream=True, stream_options={"include_usage": True}))
    assert USAGE_CHUNK in asked_for.content


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("canary", "reason"),
    [
        (FakeCanary(status=503), "status_503"),
        (FakeCanary(status=500), "status_500"),
        (FakeCanary(status=401), "status_401"),
        (FakeCanary(version="6"), "version"),
    ],
)
def test_where_the_canary_does_not_answer_the_champion_does(
    users_app: UsersApp, canary: FakeCanary, reason: str, stream: bool
):
    (user,) = users_of(users_app, candidates=True)
    reply = ask(users_app, canary, chat_body(user, stream=stream))
    assert (reply.status_code, text_of(reply)) == (200, CHAMPION_TEXT)
    assert reply.headers[POLICY_VERSION] == "0"
    assert len(users_app.log.events) == 1
    assert users_app.counted == {f"champion.{reason}": 1}


def test_an_unreachable_canary_is_replaced_by_the_champion(users_app: UsersApp):
    (user,) = users_of(users_app, candidates=True)

    async def main() -> httpx.Response:
        async with listening(FakeCanary()) as url:
            pass
        users_app.run = parse_run({"root": str(users_app.layout.root), "serve": {"port": int(url.rpartition(":")[2])}})
        users_app.make()
        async with users_app.client() as client:
            return await client.post("/v1/chat/completions", json=chat_body(user))

    assert text_of(asyncio.run(main())) == CHAMPION_TEXT
    assert users_app.counted == {"champion.connection": 1}


def test_a_canary_that_does_not_begin_within_the_timeout_is_replaced_by_the_champion(tmp_path: Path):
    users_app = UsersApp(tmp_path, serve={"request_timeout_s": 0.4})
    users_app.start()
    (user,) = users_of(users_app, candidates=True)

    async def main() -> httpx.Response:
        users_app.make(httpx.ASGITransport(app=FakeCanary(waits=asyncio.Event())))
        async with users_app.client() as client:
            return await client.post("/v1/chat/completions", json=chat_body(user))

    assert text_of(asyncio.run(main())) == CHAMPION_TEXT
    assert users_app.counted == {"champion.timeout": 1}


def test_a_stream_arrives_while_it_is_made_and_a_broken_one_ends_with_an_error(users_app: UsersApp):
    (user,) = users_of(users_app, candidates=True)
    canary = FakeCanary(breaks_after=2)

    async def main() -> bytes:
        async with listening(canary) as url:
            users_app.run = parse_run(
                {"root": str(users_app.layout.root), "serve": {"port": int(url.rpartition(":")[2])}}
            )
            users_app.make()
            async with users_app.client() as client:
                return (await client.post("/v1/chat/completions", json=chat_body(user, stream=True))).content

    received = asyncio.run(main())
    assert received.startswith(chunk("0 ") + chunk("1 "))
    assert (
        json.loads(received.removeprefix(chunk("0 ") + chunk("1 ")).removeprefix(b"data: "))["error"]["code"]
        == "broken_off"
    )


def test_a_client_that_disconnects_closes_the_canarys_stream(users_app: UsersApp):
    (user,) = users_of(users_app, candidates=True)
    canary = FakeCanary(pieces=2000, piece_s=0.01)

    async def main() -> None:
        async with listening(canary) as url:
            users_app.run = parse_run(
                {"root": str(users_app.layout.root), "serve": {"port": int(url.rpartition(":")[2])}}
            )
            users_app.make()
            async with (
                listening(users_app.client()._transport.app) as front,
                httpx.AsyncClient(base_url=front) as client,
            ):  # type: ignore[attr-defined]
                asked = chat_body(user, stream=True)
                async with client.stream("POST", "/v1/chat/completions", json=asked) as reply:
                    async for piece in reply.aiter_bytes():
                        assert piece == chunk("0 ")
                        break
                for _ in range(500):
                    if canary.ended:
                        break
                    await asyncio.sleep(0.01)

    asyncio.run(main())
    assert canary.ended == ["left"]
