"""A users' application whose canary is a fake, and requests to it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response, StreamingResponse

from sdpo_ray.config import Run, parse_run
from sdpo_ray.headers import POLICY_VERSION, TURN_ID
from sdpo_ray.io.files import write_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import Canary, Fingerprint, Release
from serve.canary.router import CanaryRouter
from tests.support.recorded_engine import MemoryLog, client_of, recorder_of

CHAMPION_TEXT, CANDIDATE_TEXT = "Paris, says the champion.", "Paris, says the candidate."

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}

_Result = TypeVar("_Result")


def chunk(text: str) -> bytes:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}}]})}\n\n".encode()


USAGE_CHUNK = f"data: {json.dumps({'choices': [], 'usage': USAGE}, separators=(',', ':'))}\n\n".encode()

DONE = b"data: [DONE]\n\n"


@dataclass
class FakeCanary:
    """An ASGI app in the canary's place: it answers as configured and keeps the requests it received."""

    version: str = "7"
    status: int = 200
    breaks_after: int | None = None
    """Number of chunks after which a stream raises."""
    waits: asyncio.Event | None = None
    """Awaited before the first byte of a response."""
    asked: list[tuple[dict[str, Any], Headers, str]] = field(default_factory=list)
    pieces: int = 3
    ended: list[str] = field(default_factory=list)
    """How each stream ended: `whole`, or `left` if the client disconnected first."""
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
            message = {"role": "assistant", "content": CANDIDATE_TEXT}
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


class UsersApp:
    """The users' application with a champion of fixed text, and the canary file that routes its chats."""

    def __init__(self, folder: Path, **overrides: Any) -> None:
        self.layout = Layout(folder)
        self.run: Run = parse_run({"root": str(folder), **overrides})
        self.log = MemoryLog()
        self._recorder = recorder_of(folder, self.log)
        self.router: CanaryRouter | None = None

    def start(self, *, mode: str = "canary", share: float = 0.5, version: int = 7) -> None:
        fingerprint = Fingerprint(token_ids=(1, 2), logprobs=(-0.5,))
        candidate = Release(policy_version=version, path="p", previous_version=0, fingerprint=fingerprint)
        canary = Canary(candidate=candidate, champion_version=0, mode="canary", share=share, started_at_s=1.0)
        write_json(self.layout.canary_pointer, replace(canary, mode=mode))

    def make(self, transport: httpx.AsyncBaseTransport | None = None) -> CanaryRouter:
        self.router = CanaryRouter(self.run, transport=transport)
        return self.router

    def client(self) -> httpx.AsyncClient:
        return client_of(self._recorder, lambda _: CHAMPION_TEXT, canary=self.router)

    @property
    def counted(self) -> dict[str, int]:
        assert self.router is not None
        return dict(self.router.counters.values)


def chat_body(user: str = "alice", text: str = "Capital of France?", **more: Any) -> dict[str, Any]:
    return {"model": "policy", "messages": [{"role": "user", "content": text}], "user": user, **more}


def with_client(users_app: UsersApp, canary: Any, work: Callable[[httpx.AsyncClient], Awaitable[_Result]]) -> _Result:
    """Run `work` with a client of `users_app`, whose canary is the ASGI app `canary`."""

    async def main() -> _Result:
        users_app.make(httpx.ASGITransport(app=canary))
        async with users_app.client() as client:
            return await work(client)

    return asyncio.run(main())


def ask(users_app: UsersApp, canary: Any, request: dict[str, Any], **headers: str) -> httpx.Response:
    async def work(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/chat/completions", json=request, headers=headers)

    return with_client(users_app, canary, work)


def users_of(users_app: UsersApp, *, candidates: bool, n: int = 1) -> list[str]:
    """`n` users whose conversations are routed to the candidate, or to the champion."""
    found = []
    for number in range(1000):
        canary = FakeCanary()
        ask(users_app, canary, chat_body(f"user-{number}"))
        if bool(canary.asked) == candidates:
            found.append(f"user-{number}")
        if len(found) == n:
            users_app.log.events.clear()
            return found
    raise AssertionError("the split gives one policy no conversation")
