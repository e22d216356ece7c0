"""Operation of the service with a real engine: limits, time-outs, draining, logs, traces, health.

The tests use a separate application with API keys, tight limits and a trace collector.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from sdpo_ray.capture.api_keys import ApiKeys
from sdpo_ray.config import LimitsConfig
from sdpo_ray.errors import ConfigError
from sdpo_ray.io.paths import Layout
from sdpo_ray.records import FinishReason
from tests.support.otlp_collector import OtlpCollector, attributes
from tests.support.paths import CHECKPOINT
from tests.support.serving import Served, deployed
from tests.support.streaming import assert_begun_streams_end_whole

pytestmark = pytest.mark.integration
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TIMEOUT_S = 10


def long(num_tokens: int) -> dict[str, Any]:
    """Request fields with which an answer has exactly so many tokens."""
    return {"max_tokens": num_tokens, "min_tokens": num_tokens, "ignore_eos": True}


@dataclass(frozen=True, slots=True)
class Guarded:
    """An application with API keys."""

    served: Served
    keys: dict[str, str]
    collector: OtlpCollector

    def ask(self, who: str, *, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        body = {"model": "policy", "messages": QUESTION, "max_tokens": 8, **more}
        sent = {"authorization": f"Bearer {self.keys[who]}", **(headers or {})}
        return httpx.post(f"{self.served.url}/v1/chat/completions", json=body, headers=sent, timeout=60)

    def metrics(self) -> str:
        return httpx.get(f"{self.served.url}/metrics", timeout=60).text


@pytest.fixture(scope="module")
def guarded(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    root = tmp_path_factory.mktemp("guarded")
    layout = Layout(root)
    limits: dict[str, dict[str, int]] = {
        "free": {},
        "few": {"requests_per_minute": 3},
        "short": {"tokens_per_minute": 20},
        "single": {"concurrent": 1},
    }
    keys = {name: ApiKeys.load(layout.api_keys).add(name, **own)[0] for name, own in limits.items()}
    with OtlpCollector() as collector:
        overrides = [
            f"root={root}",
            f"policy.base={CHECKPOINT}",
            f"serve.request_timeout_s={TIMEOUT_S}",
            f"serve.otlp_endpoint={collector.endpoint}",
            "serve.drain_s=30",
            # Few at once, so that requests queue.
            "serve.max_num_seqs=2",
        ]
        with deployed("guarded", overrides):
            url = f"{served.url}/guarded"
            yield Guarded(Served(url=url, layout=layout, base=CHECKPOINT, overrides=tuple(overrides)), keys, collector)


def logs() -> Path:
    """The folder of this Ray session's logs."""
    import ray

    return Path(ray._private.worker._global_node.get_logs_dir_path())


def lines_of(request_id: str, timeout_s: float = 20) -> list[dict[str, Any]]:
    """The lines of one request in the replicas' logs."""
    deadline = time.monotonic() + timeout_s
    while True:
        texts = [path.read_text(errors="replace") for path in (logs() / "serve").glob("replica_*.log")]
        found = [json.loads(line) for text in texts for line in text.splitlines() if f'"{request_id}"' in line]
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def test_no_user_text_is_in_any_log(served: Served):
    word = "Zanzibarquoll4711"
    chat = f"{served.url}/v1/chat/completions"
    said = [{"role": "user", "content": f"My name is {word}."}]
    ask = {"model": "policy", "messages": said, "max_tokens": 8}
    with httpx.Client(timeout=60) as client:
        for more in (
            {},
            {"stream": True},
            {"user": word, "metadata": {"note": word}},
            {"stop": [word]},
            {"model": word},
        ):
            client.post(chat, json=ask | more, headers={"x-sdpo-conversation-id": word, "user-agent": word})
        for bad in (
            ask | {"max_tokens": word},
            ask | {"messages": [{"role": word, "content": word}]},
            ask | {"messages": [{"role": "user", "content": [{"type": word}]}]},
            ask | {"tools": [{"type": "function", "function": {"name": word, "parameters": {"type": word}}}]},
            ask | {"tool_choice": word},
            ask | {"response_format": {"type": "json_schema", "json_schema": {"name": word, "schema": {"type": word}}}},
            ask | {"chat_template_kwargs": {"enable_thinking": {word: word}}},
            ask | {"messages": [{"role": "user", "content": word * 2000}]},
            {"messages": word},
            word,
        ):
            client.post(chat, json=bad)
        client.post(chat, content=f'{{"{word}"'.encode())
        client.get(f"{served.url}/v1/{word}?{word}={word}", headers={"x-request-id": f"id of {word}"})
        client.post(f"{served.url}/v1/feedback", json={"turn_id": word, "comment": word})
        with pytest.raises(httpx.ReadTimeout):
            client.post(chat, json=ask | long(400) | {"n": 16}, timeout=0.3)
    # Lines are written in order: once this line is there, all earlier ones are.
    last = httpx.post(chat, json=ask, headers={"x-request-id": "the-last-one"}, timeout=60)
    assert last.status_code == 200
    assert lines_of("the-last-one")
    files = [path for path in logs().rglob("*") if path.is_file()]
    assert any("replica" in path.name for path in files)
    spoken = [path.name for path in files if word.encode() in path.read_bytes()]
    assert spoken == []


def test_every_request_has_one_access_log_line_with_its_outcome(served: Served):
    body = {"model": "policy", "messages": QUESTION, "max_tokens": 8, "stream": True}
    headers = {"x-request-id": "line-1"}
    reply = httpx.post(f"{served.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert reply.headers["x-request-id"] == "line-1"
    assert '"id":"chatcmpl-line-1"' in reply.text.replace(" ", "")
    turn = served.turns()[reply.headers["x-sdpo-turn-id"]]
    (line,) = lines_of("line-1")
    assert (line["route"], line["status"], line["outcome"]) == ("/v1/chat/completions", 200, "ok")
    assert (line["tenant"], line["policy_version"]) == ("default", turn.policy_version)
    assert (line["prompt_tokens"], line["response_tokens"]) == (len(turn.prompt_ids), len(turn.response_ids))
    assert 0 < line["ttft_s"] <= line["seconds"]
    assert 0 <= line["gate_s"] <= line["seconds"]
    assert 0 < line["journal_s"] <= line["seconds"]


def test_a_client_that_hangs_up_is_a_line_of_its_own(served: Served):
    body = {"model": "policy", "messages": QUESTION, "stream": True, **long(400)}
    headers = {"x-request-id": "line-2"}
    url = f"{served.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as reply:
        next(reply.iter_bytes())
    (line,) = lines_of("line-2")
    assert (line["outcome"], line["status"]) == ("aborted", 200)
    assert 0 < line["response_tokens"] < 400


def test_health_and_readiness_tell_what_is_served(served: Served):
    assert httpx.head(f"{served.url}/health").headers["x-sdpo-policy-version"] == "1"
    assert httpx.get(f"{served.url}/health").json() == {"status": "alive"}
    ready = httpx.get(f"{served.url}/ready")
    assert ready.status_code == 200
    said = ready.json()
    assert (said["ready"], said["policy_version"], said["swap_error"], said["draining"]) == (True, 1, None, False)
    assert said["journal"]["healthy"] is True
    assert said["queue"]["in_engine"] >= 0


def test_vllm_s_numbers_are_right_behind_our_layers_and_ours_are_beside_them(guarded: Guarded):
    def number(name: str) -> float:
        return sum(float(line.rpartition(" ")[2]) for line in guarded.metrics().splitlines() if line.startswith(name))

    names = (
        "vllm:time_to_first_token_seconds_count",
        "vllm:generation_tokens_total",
        "vllm:e2e_request_latency_seconds_count",
        'sdpo_requests_total{outcome="ok",route="/v1/chat/completions",status="200"}',
        "sdpo_ttft_seconds_count",
        "sdpo_gate_wait_seconds_count",
        "sdpo_journal_wait_seconds_count",
    )
    before = [number(name) for name in names]
    tokens = 0
    for stream in (False, True):
        reply = guarded.ask("free", stream=stream, min_tokens=8, ignore_eos=True)
        tokens += len(guarded.served.turns()[reply.headers["x-sdpo-turn-id"]].response_ids)
    assert tokens == 16
    assert [number(name) - was for name, was in zip(names, before, strict=True)] == [2, 16, 2, 2, 1, 2, 2]
    page = guarded.metrics()
    for line in (
        "sdpo_policy_version 1.0",
        "sdpo_log_healthy 1.0",
        "sdpo_log_oldest_seconds ",
        "sdpo_swap_refused 0.0",
    ):
        assert line in page


def test_a_key_over_its_request_limit_gets_retry_after(guarded: Guarded):
    replies = []
    while not replies or replies[-1].status_code == 200:
        replies.append(guarded.ask("few"))
    # One more where a new minute began in between.
    assert len(replies) in (4, 5)
    refused = replies[-1]
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 121
    assert refused.headers["x-ratelimit-limit-requests"] == "3"
    assert replies[0].headers["x-ratelimit-remaining-requests"] == "2"
    assert guarded.ask("free").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_are_charged_as_the_engine_counted_them(guarded: Guarded, stream: bool):
    key, _ = ApiKeys.load(guarded.served.layout.api_keys).add("fresh", tokens_per_minute=10_000)
    headers = {"authorization": f"Bearer {key}"}
    first = guarded.ask("free", headers=headers, stream=stream)
    turn = guarded.served.turns()[first.headers["x-sdpo-turn-id"]]
    left = int(guarded.ask("free", headers=headers).headers["x-ratelimit-remaining-tokens"])
    used = len(turn.prompt_ids) + len(turn.response_ids)
    assert 10_000 - used <= left <= 10_000 - used + used // 10


def test_a_key_in_debt_waits(guarded: Guarded):
    assert guarded.ask("short").status_code == 200
    refused = guarded.ask("short")
    assert refused.status_code == 429
    assert "tokens a minute" in refused.json()["error"]["message"]
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"


def test_a_key_may_have_one_request_at_a_time(guarded: Guarded):
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: guarded.ask("single", **long(200)), range(4)))
    statuses = sorted(reply.status_code for reply in replies)
    assert statuses.count(200) == 1
    assert statuses.count(429) == 3
    assert guarded.ask("single").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_what_takes_too_long_is_given_up_by_the_engine_too(guarded: Guarded, stream: bool):
    before = set(guarded.served.turns())
    reply = guarded.ask("free", n=64, stream=stream, **long(460))
    if stream:
        assert reply.status_code == 200
        last = [line for line in reply.text.splitlines() if line][-1]
        error = json.loads(last.removeprefix("data: "))["error"]
    else:
        assert reply.status_code == 504
        error = reply.json()["error"]
    assert error["code"] == "timeout"
    assert f"{TIMEOUT_S} s" in error["message"]
    deadline = time.monotonic() + 10
    while httpx.get(f"{guarded.served.url}/ready").json()["queue"]["in_engine"]:
        assert time.monotonic() < deadline, "the engine goes on for nobody"
        time.sleep(0.1)
    recorded = [turn for turn_id, turn in guarded.served.turns().items() if turn_id not in before]
    assert FinishReason.ABORT in {turn.finish_reason for turn in recorded}
    assert {turn.finish_reason for turn in recorded} <= {FinishReason.ABORT, FinishReason.LENGTH}
    assert 'outcome="timeout"' in guarded.metrics()


def test_a_trace_goes_through_us_into_the_engine(guarded: Guarded):
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    guarded.ask("free", headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}, user="Zanzibarquoll")
    wanted, deadline = {"gate", "engine", "journal", "llm_request"}, time.monotonic() + 30
    while True:
        spans = [span for span in guarded.collector.spans if span.trace_id.hex() == trace]
        if wanted <= {span.name for span in spans} and any(span.name.startswith("POST") for span in spans):
            break
        assert time.monotonic() < deadline, [span.name for span in spans]
        time.sleep(0.2)
    (own,) = (span for span in spans if span.name.startswith("POST"))
    assert own.parent_span_id.hex() == "00f067aa0ba902b7"
    assert {span.parent_span_id for span in spans if span.name in wanted} == {own.span_id}
    assert attributes(own)["sdpo.tenant"] == "free"
    assert not any(b"France" in each or b"Zanzibarquoll" in each for each in guarded.collector.received)


def test_an_open_address_without_api_keys_is_refused(served: Served, tmp_path: Path):
    from sdpo_ray.cli.options import LAPTOP
    from sdpo_ray.upstream.ray import serve_http_host
    from serve.app import Arguments, build

    overrides = [f"root={tmp_path}", "serve.host=0.0.0.0"]
    with pytest.raises(ConfigError, match="without an API key"):
        build(Arguments(run_file=str(LAPTOP), overrides=overrides))
    ApiKeys.load(Layout(tmp_path).api_keys).add("acme")
    build(Arguments(run_file=str(LAPTOP), overrides=overrides))
    assert asyncio.run(serve_http_host()) == "127.0.0.1"


def test_replicas_share_one_count_and_do_not_limit_while_it_is_unavailable(ray_cluster: str):
    import ray
    from ray.exceptions import RayActorError

    from serve.gateway.shared_rate_limit import SharedRateLimiter

    async def scenario() -> list[str]:
        one, other = SharedRateLimiter("unit", 60), SharedRateLimiter("unit", 60)
        limits = LimitsConfig(concurrent=2)
        deadline = time.monotonic() + 60
        while not (first := await one.acquire("k", limits)).ticket:
            assert time.monotonic() < deadline
        one.counters.values.clear()
        said = [first.refused, (await other.acquire("k", limits)).refused, (await one.acquire("k", limits)).refused]
        await other.release("k", limits, first.ticket, 0)
        said.append((await one.acquire("k", limits)).refused)
        counter = ray.get_actor("limits of unit", namespace="sdpo-ray")
        ray.kill(counter, no_restart=True)
        # Ray kills the actor asynchronously; until then the counter keeps its value.
        with pytest.raises(RayActorError):
            while time.monotonic() < deadline:
                await counter.holds.remote("k", first.ticket)
        assert not (await one.acquire("k", limits)).refused
        assert one.counters.values["unavailable"] == 1
        while not (verdict := await one.acquire("k", limits)).ticket:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        assert not verdict.refused
        ray.kill(ray.get_actor("limits of unit", namespace="sdpo-ray"), no_restart=True)
        return said

    assert asyncio.run(scenario()) == ["", "", "concurrent", ""]


def test_every_stream_that_has_begun_ends_when_the_application_is_stopped(guarded: Guarded):
    """Stops the application under load, so it is the last test that uses it."""
    from ray import serve

    headers = {"authorization": f"Bearer {guarded.keys['free']}"}
    stop = partial(serve.delete, "guarded")
    assert_begun_streams_end_whole(guarded.served, stop, num_tokens=200, headers=headers)
    # The journal was closed properly: no segment has allocated room left at its end.
    segments = sorted(guarded.served.layout.journal.glob("*.log"))
    assert segments
    assert all(path.read_bytes()[-1:] != b"\0" for path in segments)
