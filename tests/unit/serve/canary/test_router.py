"""Chats while a candidate is on trial, through the real middleware: who answers them, and what goes wrong unseen."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import uvicorn
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response, StreamingResponse

from sdpo_ray.capture.pairing_keys import owners
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.config import Run, parse_run
from sdpo_ray.headers import POLICY_VERSION, TURN_ID
from sdpo_ray.io.files import write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Canary, Fingerprint, Release
from sdpo_ray.records.run_events import ShadowResponse
from sdpo_ray.telemetry import read_events
from serve.canary.router import CanaryRouter
from serve.canary.shadow import MAX_COPIES
from serve.gateway.auth import CanaryAuthenticator, private_key
from tests.support.recorded_engine import MemoryLog, client_of, recorder_of, text_of

CHAMPIONS, CANDIDATES = "Paris, says the champion.", "Paris, says the candidate."
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
_Result = TypeVar("_Result")


def chunk(text: str) -> bytes:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}}]})}\n\n".encode()


USAGE_CHUNK = f"data: {json.dumps({'choices': [], 'usage': USAGE}, separators=(',', ':'))}\n\n".encode()
DONE = b"data: [DONE]\n\n"


@dataclass
class FakeCanary:
    """In the canary's place: answers as it is told, and remembers what it was asked."""

    version: str = "7"
    status: int = 200
    breaks_after: int | None = None
    """A stream breaks off after so many chunks."""
    waits: asyncio.Event | None = None
    """Before anything of an answer is out."""
    asked: list[tuple[dict[str, Any], Headers, str]] = field(default_factory=list)
    pieces: int = 3
    ended: list[str] = field(default_factory=list)
    """How streams ended here: `whole`, or `left` when nobody was there any more."""
    piece_s: float = 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message.get("more_body"):
                break
        request = json.loads(body)
        self.asked.append((request, Headers(scope=scope), scope["path"]))
        if self.waits is not None:
            await self.waits.wait()
        headers = {POLICY_VERSION: self.version, TURN_ID: f"turn-{len(self.asked)}", "x-other": "not passed on"}
        reply: Response
        if self.status != 200:
            reply = JSONResponse({"error": {"message": "no"}}, status_code=self.status)
        elif request.get("stream"):
            reply = StreamingResponse(self._stream(request), media_type="text/event-stream", headers=headers)
        else:
            message = {"role": "assistant", "content": CANDIDATES}
            answer = {"choices": [{"index": 0, "message": message}], "usage": USAGE}
            reply = JSONResponse(answer, headers=headers)
        await reply(scope, receive, send)

    async def _stream(self, request: dict[str, Any]) -> AsyncIterator[bytes]:
        end = "left"
        try:
            for number in range(self.pieces):
                if number == self.breaks_after:
                    raise ConnectionError("the engine died")
                yield chunk(f"{number} ")
                await asyncio.sleep(self.piece_s)
            if request.get("stream_options", {}).get("include_usage"):
                yield USAGE_CHUNK
            yield DONE
            end = "whole"
        finally:
            self.ended.append(end)


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


class House:
    """The users' application with a recorded champion, and where the trial's file is."""

    def __init__(self, folder: Path, **overrides: Any) -> None:
        self.layout = Layout(folder)
        self.run: Run = parse_run({"root": str(folder), **overrides})
        self.log = MemoryLog()
        self._recorder = recorder_of(folder, self.log)
        self.splitter: CanaryRouter | None = None

    def start(self, *, mode: str = "canary", share: float = 0.5, version: int = 7) -> None:
        fingerprint = Fingerprint(token_ids=(1, 2), logprobs=(-0.5,))
        candidate = Release(policy_version=version, path="p", previous_version=0, fingerprint=fingerprint)
        canary = Canary(candidate=candidate, champion_version=0, mode="canary", share=share, started_at_s=1.0)
        write_json(self.layout.canary_pointer, replace(canary, mode=mode))

    def make(self, transport: httpx.AsyncBaseTransport | None = None) -> CanaryRouter:
        self.splitter = CanaryRouter(self.run, self.layout, transport=transport)
        return self.splitter

    def client(self) -> httpx.AsyncClient:
        return client_of(self._recorder, lambda _: CHAMPIONS, canary=self.splitter)

    @property
    def counted(self) -> dict[str, int]:
        assert self.splitter is not None
        return dict(self.splitter.counters.values)


def body(user: str = "alice", text: str = "Capital of France?", **more: Any) -> dict[str, Any]:
    return {"model": "policy", "messages": [{"role": "user", "content": text}], "user": user, **more}


def within(house: House, canary: Any, work: Callable[[httpx.AsyncClient], Awaitable[_Result]]) -> _Result:
    """Run `work` with a client of the house, whose canary is `canary`."""

    async def main() -> _Result:
        house.make(httpx.ASGITransport(app=canary))
        async with house.client() as client:
            return await work(client)

    return asyncio.run(main())


def ask(house: House, canary: Any, request: dict[str, Any], **headers: str) -> httpx.Response:
    async def work(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/chat/completions", json=request, headers=headers)

    return within(house, canary, work)


def users_of(house: House, *, candidates: bool, n: int = 1) -> list[str]:
    """Users whose conversation is the candidate's, or is not."""
    found = []
    for number in range(1000):
        canary = FakeCanary()
        ask(house, canary, body(f"user-{number}"))
        if bool(canary.asked) == candidates:
            found.append(f"user-{number}")
        if len(found) == n:
            house.log.events.clear()
            return found
    raise AssertionError("the draw is not fair")


@pytest.fixture
def house(tmp_path: Path) -> House:
    house = House(tmp_path)
    house.start()
    return house


def test_without_a_canary_everybody_meets_the_champion(tmp_path: Path):
    house, canary = House(tmp_path), FakeCanary()
    reply = ask(house, canary, body())
    assert text_of(reply) == CHAMPIONS
    assert canary.asked == []
    assert house.counted == {}


@pytest.mark.parametrize("stream", [False, True])
def test_a_candidates_conversation_is_answered_by_the_canary_with_its_headers(house: House, stream: bool):
    (user,) = users_of(house, candidates=True)
    canary = FakeCanary()
    reply = ask(house, canary, body(user, stream=stream, temperature=0.5), **{"x-sdpo-tenant": "somebody-else"})
    assert reply.status_code == 200
    assert text_of(reply) == ("0 1 2 " if stream else CANDIDATES)
    assert reply.headers[POLICY_VERSION] == "7"
    assert reply.headers[TURN_ID] == "turn-1"
    assert "x-other" not in reply.headers
    ((request, headers, path),) = canary.asked
    assert path == "/canary/v1/chat/completions"
    assert {name: request[name] for name in (*body(), "temperature")} == body(user, temperature=0.5)
    assert headers["authorization"] == f"Bearer {house.layout.canary_key.read_text()}"
    assert (headers["x-sdpo-tenant"], headers["x-sdpo-consent"]) == ("default", "train")
    assert house.log.events == []
    assert house.counted == {"candidate": 1}


def test_a_users_word_about_consent_and_the_conversations_name_go_along(house: House):
    (user,) = users_of(house, candidates=True)
    canary = FakeCanary()
    ask(house, canary, body(user, metadata={"consent": "none"}), **{"x-request-id": "one"})
    ((_, headers, _),) = canary.asked
    assert (headers["x-sdpo-consent"], headers["x-request-id"]) == ("none", "one")

    async def named(client: httpx.AsyncClient) -> None:
        for number in range(20):
            given = {"x-sdpo-conversation-id": f"c{number}"}
            await client.post("/v1/chat/completions", json=body(), headers=given)

    canary = FakeCanary()
    within(house, canary, named)
    assert 0 < len(canary.asked) < 20
    assert all(headers["x-sdpo-conversation-id"].startswith("c") for _, headers, _ in canary.asked)


def test_usage_is_counted_for_everybody_and_shown_to_who_asked(house: House):
    (user,) = users_of(house, candidates=True)
    plain = ask(house, FakeCanary(), body(user, stream=True))
    assert b"usage" not in plain.content
    assert plain.content.endswith(DONE)
    asked_for = ask(house, FakeCanary(), body(user, stream=True, stream_options={"include_usage": True}))
    assert USAGE_CHUNK in asked_for.content


def test_a_conversation_stays_with_its_policy_over_its_turns_and_on_every_replica(house: House):
    async def talk(client: httpx.AsyncClient) -> dict[str, set[str]]:
        met: dict[str, set[str]] = {}
        for number in range(30):
            messages = [{"role": "user", "content": f"Question {number}?"}]
            for _ in range(3):
                reply = await client.post("/v1/chat/completions", json=body(messages=messages))
                met.setdefault(f"{number}", set()).add(reply.headers[POLICY_VERSION])
                messages += [{"role": "assistant", "content": text_of(reply)}, {"role": "user", "content": "More."}]
        return met

    first, second = within(house, FakeCanary(), talk), within(house, FakeCanary(), talk)
    assert {len(versions) for versions in first.values()} == {1}
    assert {version for versions in first.values() for version in versions} == {"0", "7"}
    assert first == second
    house.start(version=8)
    again = within(house, FakeCanary(version="8"), talk)
    # The next candidate has others: all the same would have a chance of 2 ** -30.
    assert {n for n, met in again.items() if met == {"8"}} != {n for n, met in first.items() if met == {"7"}}


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_share_is_that_of_conversations(house: House, share: float):
    house.start(share=share)

    async def talk(client: httpx.AsyncClient) -> Counter[str]:
        replies = [
            await client.post("/v1/chat/completions", json=body(f"user-{number}", f"Question {number}?"))
            for number in range(400)
        ]
        return Counter(reply.headers[POLICY_VERSION] for reply in replies)

    met = within(house, FakeCanary(), talk)
    # Within four standard deviations: wrong once in 16,000 draws of keys.
    assert abs(met["7"] - 400 * share) <= 4 * math.sqrt(400 * share * (1 - share))


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
    house: House, canary: FakeCanary, reason: str, stream: bool
):
    (user,) = users_of(house, candidates=True)
    reply = ask(house, canary, body(user, stream=stream))
    assert (reply.status_code, text_of(reply)) == (200, CHAMPIONS)
    assert reply.headers[POLICY_VERSION] == "0"
    assert len(house.log.events) == 1
    assert house.counted == {f"champion.{reason}": 1}


def test_a_canary_that_is_not_there_is_not_missed(house: House):
    (user,) = users_of(house, candidates=True)

    async def main() -> httpx.Response:
        async with listening(FakeCanary()) as url:
            pass
        house.run = parse_run({"root": str(house.layout.root), "serve": {"port": int(url.rpartition(":")[2])}})
        house.make()
        async with house.client() as client:
            return await client.post("/v1/chat/completions", json=body(user))

    assert text_of(asyncio.run(main())) == CHAMPIONS
    assert house.counted == {"champion.connection": 1}


def test_a_canary_that_does_not_begin_in_time_is_not_waited_for(tmp_path: Path):
    house = House(tmp_path, serve={"request_timeout_s": 0.4})
    house.start()
    (user,) = users_of(house, candidates=True)

    async def main() -> httpx.Response:
        house.make(httpx.ASGITransport(app=FakeCanary(waits=asyncio.Event())))
        async with house.client() as client:
            return await client.post("/v1/chat/completions", json=body(user))

    assert text_of(asyncio.run(main())) == CHAMPIONS
    assert house.counted == {"champion.timeout": 1}


def test_a_stream_arrives_while_it_is_made_and_a_broken_one_ends_with_an_error(house: House):
    (user,) = users_of(house, candidates=True)
    canary = FakeCanary(breaks_after=2)

    async def main() -> bytes:
        async with listening(canary) as url:
            house.run = parse_run({"root": str(house.layout.root), "serve": {"port": int(url.rpartition(":")[2])}})
            house.make()
            async with house.client() as client:
                return (await client.post("/v1/chat/completions", json=body(user, stream=True))).content

    said = asyncio.run(main())
    assert said.startswith(chunk("0 ") + chunk("1 "))
    assert (
        json.loads(said.removeprefix(chunk("0 ") + chunk("1 ")).removeprefix(b"data: "))["error"]["code"]
        == "broken_off"
    )


def test_when_the_client_hangs_up_so_do_we(house: House):
    (user,) = users_of(house, candidates=True)
    canary = FakeCanary(pieces=2000, piece_s=0.01)

    async def main() -> None:
        async with listening(canary) as url:
            house.run = parse_run({"root": str(house.layout.root), "serve": {"port": int(url.rpartition(":")[2])}})
            house.make()
            async with listening(house.client()._transport.app) as front, httpx.AsyncClient(base_url=front) as client:  # type: ignore[attr-defined]
                asked = body(user, stream=True)
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


def test_when_the_canary_ends_everything_is_the_champions_at_once(house: House):
    (user,) = users_of(house, candidates=True)

    async def work(client: httpx.AsyncClient) -> list[str]:
        met = [text_of(await client.post("/v1/chat/completions", json=body(user)))]
        house.layout.canary_pointer.unlink()
        met.append(text_of(await client.post("/v1/chat/completions", json=body(user))))
        house.start()
        met.append(text_of(await client.post("/v1/chat/completions", json=body(user))))
        house.layout.canary_pointer.write_text("{}")
        met.append(text_of(await client.post("/v1/chat/completions", json=body(user))))
        return met

    assert within(house, FakeCanary(), work) == [CANDIDATES, CHAMPIONS, CANDIDATES, CHAMPIONS]


def test_chats_that_cannot_be_followed_are_the_champions(house: House):
    to_go_on = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two,"}]
    for number in range(12):
        canary = FakeCanary()
        reply = ask(house, canary, body(f"user-{number}", messages=to_go_on))
        assert canary.asked == []
        assert text_of(reply) == CHAMPIONS


def test_who_has_a_personal_policy_takes_no_part(tmp_path: Path):
    house = House(tmp_path, serve={"adapters": 2})
    house.start()
    (user,) = users_of(house, candidates=True)
    pseudonyms = Pseudonyms.load(house.layout.pseudonym_keys)
    pointer = house.layout.personal_pointer(owners(pseudonyms, tenant="default", user=user)[0])
    pointer.parent.mkdir()
    pointer.touch()
    canary = FakeCanary()
    assert text_of(ask(house, canary, body(user))) == CHAMPIONS
    assert canary.asked == []


def shadow_file(house: House) -> Path:
    (path,) = house.layout.canary_answers(7).glob("*.jsonl")
    return path


def test_a_shadow_is_never_seen_and_nothing_of_it_is_kept_but_numbers(house: House):
    (user,) = users_of(house, candidates=True)
    house.start(mode="shadow")
    canary = FakeCanary()

    async def work(client: httpx.AsyncClient) -> httpx.Response:
        reply = await client.post("/v1/chat/completions", json=body(user, stream=True, n=2))
        while not house.counted:
            await asyncio.sleep(0.01)
        return reply

    reply = within(house, canary, work)
    assert (text_of(reply), reply.headers[POLICY_VERSION]) == (CHAMPIONS, "0")
    ((request, headers, _),) = canary.asked
    assert (request.get("stream"), request["n"], headers["x-sdpo-consent"]) == (None, 1, "none")
    (event,) = read_events(shadow_file(house))
    assert isinstance(event, ShadowResponse)
    assert (event.tokens, event.error) == (7, "")
    assert 0 <= event.seconds < 60
    assert "Paris" not in shadow_file(house).read_text()
    assert house.counted == {"shadow.answered": 1}


def test_a_shadow_delays_nobody_and_is_dropped_when_there_are_too_many(house: House):
    house.start(mode="shadow")

    async def main() -> list[str]:
        canary = FakeCanary(waits=asyncio.Event())
        splitter = house.make(httpx.ASGITransport(app=canary))
        async with house.client() as client:
            said = []
            for number in range(60):
                reply = await client.post("/v1/chat/completions", json=body(f"user-{number}", f"Question {number}?"))
                said.append(text_of(reply))
            assert splitter.counters.values["shadow.dropped"] > 0
            assert len(canary.asked) == MAX_COPIES
            assert canary.waits is not None
            canary.waits.set()
            while house.counted.get("shadow.answered", 0) < MAX_COPIES:
                await asyncio.sleep(0.01)
            return said

    assert asyncio.run(main()) == [CHAMPIONS] * 60


def test_a_shadow_that_fails_is_counted_and_seen_by_nobody(house: House):
    (user,) = users_of(house, candidates=True)
    house.start(mode="shadow")

    async def work(client: httpx.AsyncClient) -> httpx.Response:
        reply = await client.post("/v1/chat/completions", json=body(user))
        while not house.counted:
            await asyncio.sleep(0.01)
        return reply

    assert text_of(within(house, FakeCanary(status=500), work)) == CHAMPIONS
    assert house.counted == {"shadow.failed": 1}
    (event,) = read_events(shadow_file(house))
    assert isinstance(event, ShadowResponse)
    assert (event.tokens, event.error) == (0, "status_500")


def test_the_canary_believes_only_who_has_the_key(tmp_path: Path):
    key = private_key(tmp_path / "canary.key")
    assert private_key(tmp_path / "canary.key") == key
    assert (tmp_path / "canary.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["canary.key"]
    authenticator = CanaryAuthenticator(key)
    chat = "/v1/chat/completions"
    for authorization in ("", "Bearer", "Bearer ", f"Bearer {key.decode()}x", f"Basic {key.decode()}"):
        assert authenticator.caller(chat, {"authorization": authorization, "x-sdpo-tenant": "acme"}) is None
    right = {"authorization": f"Bearer {key.decode()}"}
    caller = authenticator.caller(chat, {**right, "x-sdpo-tenant": "acme"})
    assert caller is not None
    assert (caller.tenant, caller.limited) == ("acme", False)
    assert (authenticator.caller(chat, right) or caller).tenant == "default"
    assert authenticator.caller("/health", {}) is not None
