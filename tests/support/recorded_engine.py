"""An engine that gives recorded answers, and an event log that keeps its events in memory."""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
from prometheus_client import CollectorRegistry
from starlette.responses import JSONResponse, StreamingResponse

from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.capture.recorder import Recorder
from sdpo_ray.chat import ControlTokens
from sdpo_ray.config import CaptureConfig, ServeConfig
from sdpo_ray.eventlog.protocol import Batch, EventLog
from sdpo_ray.headers import POLICY_VERSION
from sdpo_ray.records import Event
from sdpo_ray.redaction import Redactor
from serve.api.context import ApiContext, ChatRouter
from serve.api.models import ServedModel
from serve.api.routes import ApiMiddleware
from serve.gateway.auth import Authenticator, UserAuthenticator
from serve.gateway.health import Health
from serve.gateway.middleware import GatewayMiddleware
from serve.gateway.observability import Observability
from serve.request_context import CHAT_CONTEXT
from tests.support.engine_responses import answered

KINDS = CaptureConfig().redact


class MemoryLog:
    """An event log that fails with `error` while one is set."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.error: Exception | None = None

    def append(self, event: Event) -> "Future[None]":
        future: Future[None] = Future()
        if self.error is None:
            self.events.append(event)
            future.set_result(None)
        else:
            future.set_exception(self.error)
        return future

    def partitions(self) -> list[str]:
        return ["memory"]

    def poll(self, after: Mapping[str, int], *, max_events: int, max_bytes: int) -> Batch:
        new = tuple(self.events[after.get("memory", 0) :])
        return Batch(events=new, positions={"memory": len(self.events)}, at_end=frozenset({"memory"}))

    def truncate(self, upto: Mapping[str, int]) -> None:
        pass

    def backlog_bytes(self, after: Mapping[str, int]) -> int:
        return 1000 * len(self.events)

    def close(self) -> None:
        pass


def recorder_of(folder: Path, log: EventLog, *, timeout_s: float = 15) -> Recorder:
    """Return a recorder with the default redaction, and pseudonym keys in `folder`."""
    pseudonyms = Pseudonyms.load(folder / "pseudonyms.json")
    return Recorder(log, Redactor(KINDS), lambda: pseudonyms, timeout_s=timeout_s)


class RecordedEngine:
    """ASGI app in place of vLLM: `answer` returns the response to a request, which is recorded as the engine's is."""

    def __init__(self, recorder: Recorder | None, answer: Callable[[Mapping[str, Any]], str]) -> None:
        self._recorder = recorder
        self._answer = answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "GET":
            await JSONResponse({})(scope, receive, send)
            return
        body = json.loads((await receive())["body"])
        text = self._answer(body)
        chat = CHAT_CONTEXT.get()
        assert chat is not None
        chat.context.policy_version = 0

        def record() -> None:
            if chat.recorded and chat.request is not None and self._recorder is not None:
                chat.storing = self._recorder.record(chat.request, answered(text))

        if not body.get("stream"):
            record()
            message = {"role": "assistant", "content": text}
            await JSONResponse({"choices": [{"index": 0, "message": message}]})(scope, receive, send)
            return

        async def pieces() -> Any:
            for start in range(0, len(text), 40):
                yield _event({"choices": [{"index": 0, "delta": {"content": text[start : start + 40]}}]})
            record()
            yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            yield "data: [DONE]\n\n"

        await StreamingResponse(pieces(), media_type="text/event-stream")(scope, receive, send)


def client_of(
    recorder: Recorder | None,
    answer: Callable[[Mapping[str, Any]], str],
    *,
    capture: CaptureConfig = CaptureConfig(),  # noqa: B008
    authenticator: Authenticator | None = None,
    config: ServeConfig = ServeConfig(),  # noqa: B008
    calls_tools: bool = True,
    canary: ChatRouter | None = None,
) -> httpx.AsyncClient:
    """Return a client of the real middleware over a recorded engine."""
    api = ApiContext(
        recorder=recorder,
        capture=capture,
        control=ControlTokens(["<|im_end|>"]),
        served=lambda: {POLICY_VERSION: "0"},
        model=ServedModel(name="policy", max_model_len=512, since_s=1_700_000_000),
        calls_tools=calls_tools,
        canary=canary,
    )
    authenticator = authenticator or UserAuthenticator(Path("there is no such file"))
    observability = Observability(config, registry=CollectorRegistry())
    app = ApiMiddleware(RecordedEngine(recorder, answer), api)
    gateway = GatewayMiddleware(app, authenticator, observability, health_of(recorder))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=gateway), base_url="http://recorded")


def health_of(recorder: Recorder | None) -> Health:
    """Return the health app of a replica that is well."""

    async def well() -> None:
        pass

    return Health(
        check=well,
        served=lambda: {POLICY_VERSION: "0"},
        recorder=recorder,
        queue=lambda: {"requests": 0, "in_engine": 0},
        draining=lambda: False,
    )


def text_of(reply: httpx.Response) -> str:
    """Return the text of a plain or streamed reply."""
    if not reply.headers["content-type"].startswith("text/event-stream"):
        return str(reply.json()["choices"][0]["message"]["content"])
    events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: {")]
    return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events)


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"
