"""Spans, as a collector gets them."""

import asyncio
from pathlib import Path
from time import time_ns

import httpx
from prometheus_client import CollectorRegistry

from sdpo_ray.config import ServeConfig
from serve.asgi import Receive, Scope, Send, read_body, refuse
from serve.gateway.auth import UserAuthenticator
from serve.gateway.middleware import GatewayMiddleware
from serve.gateway.observability import Observability
from serve.request_context import request_context_of
from tests.support.otlp_collector import OtlpCollector, attributes
from tests.support.recorded_engine import health_of

CHAT = "/v1/chat/completions"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CANARY = "the moon is made of 4711"


def test_a_request_is_a_span_under_the_client_s_with_a_child_for_each_wait_and_no_user_text() -> None:
    passed_on: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed_on.append(dict(scope["headers"])[b"traceparent"].decode())
        context = request_context_of(scope)
        for name in ("gate", "engine", "journal"):
            began_ns = time_ns()
            await asyncio.sleep(0.002)
            context.add_span(name, began_ns)
        await read_body(receive)
        context.prompt_tokens, context.response_tokens, context.policy_version = 12, 34, 5
        await refuse(500, CANARY, "server_error")(scope, receive, send)

    async def ask(observability: Observability) -> None:
        front = GatewayMiddleware(app, UserAuthenticator(Path("none")), observability, health_of(None))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=front), base_url="http://house") as client:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            await client.post(f"{CHAT}?q={CANARY}", json={"user": CANARY}, headers=headers)
            await client.post(CHAT, json={})

    with OtlpCollector() as collector:
        observability = Observability(
            ServeConfig(otlp_endpoint=collector.endpoint), replica="r1", registry=CollectorRegistry()
        )
        asyncio.run(ask(observability))
        observability.close()
    own, alone = (span for span in collector.spans if span.name == f"POST {CHAT}")
    assert (own.trace_id.hex(), own.parent_span_id.hex()) == (TRACE, PARENT)
    assert passed_on[0] == f"00-{TRACE}-{own.span_id.hex()}-01"
    assert (alone.trace_id.hex() != TRACE, alone.parent_span_id) == (True, b"")
    children = [span for span in collector.spans if span.parent_span_id == own.span_id]
    assert [span.name for span in children] == ["gate", "engine", "journal"]
    for child in children:
        assert child.end_time_unix_nano - child.start_time_unix_nano >= 2_000_000
        assert own.start_time_unix_nano <= child.start_time_unix_nano <= child.end_time_unix_nano
    said = attributes(own)
    assert (said["http.route"], said["http.response.status_code"], said["sdpo.outcome"]) == (CHAT, 500, "error")
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (12, 34)
    assert (said["sdpo.policy_version"], said["sdpo.tenant"]) == (5, "default")
    assert own.status.code == 2
    assert b"4711" not in b"".join(collector.received)
