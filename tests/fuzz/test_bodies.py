"""Random request bodies: no 5xx, no hang, no other shape of errors, and the service keeps answering."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.bodies import chats, completions
from tests.fuzz.replies import EXAMPLES, ORDINARY, TIMEOUT_S, assert_in_order, assert_still_answers
from tests.support.serving import Served

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
fuzzed = settings(
    derandomize=True,
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
HEADERS = (
    "x-request-id",
    "x-data-parallel-rank",
    "x-session-id",
    "traceparent",
    "content-type",
    "authorization",
    "accept",
)


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=TIMEOUT_S) as client:
        yield client


@pytest.fixture(autouse=True)
def _others_are_served(served: Served) -> Iterator[None]:
    yield
    assert_still_answers(served)


def post(client: httpx.Client, path: str, body: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(path, content=content, headers={"content-type": "application/json"})


@fuzzed
@given(body=chats)
def test_any_chat_is_answered_or_refused(client: httpx.Client, body: Any):
    assert_in_order(post(client, "/v1/chat/completions", body))


@fuzzed
@given(body=completions)
def test_any_completion_is_answered_or_refused(client: httpx.Client, body: Any):
    assert_in_order(post(client, "/v1/completions", body))


@fuzzed
@given(
    body=st.binary(max_size=40) | st.text(max_size=40).map(str.encode) | st.sampled_from([b"{", b"null", b'"a"', b""])
)
def test_a_body_that_is_not_json_is_refused(client: httpx.Client, body: bytes):
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/feedback"):
        reply = post(client, path, body)
        assert_in_order(reply)
        assert reply.status_code >= 400


@settings(fuzzed, max_examples=EXAMPLES // 3)
@given(name=st.sampled_from(HEADERS), value=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60))
def test_any_header_is_answered_or_refused(client: httpx.Client, name: str, value: str):
    reply = client.post("/v1/chat/completions", json=ORDINARY | {"max_tokens": 1}, headers={name: value})
    assert_in_order(reply)


ONCE_BROKE = {
    "half a character to stop at": {"stop": "\ud800"},
    "a number of 133 bits": {"top_k": 10**40},
    "as many answers as there are": {"n": 10_000},
    "a constraint in words": {"structured_outputs": "regex"},
    "a format that its compiler gives up": {"structured_outputs": {"choice": ["<|im_end|>"]}},
    "a format that other parameters forbid": {"structured_outputs": {"regex": "abc"}, "allowed_token_ids": [5]},
    "a refusal in a stream": {"structured_outputs": {"regex": "(("}, "stream": True},
    "a pattern that never ends to compile": {"structured_outputs": {"regex": "^(a|b){0,99999}$"}},
    "patterns that hold at once": {
        "structured_outputs": {
            "json": {"allOf": [{"type": "string", "pattern": f".*{c}.*"} for c in "abcdefghijklmnop"]}
        }
    },
    "a list of a thousand million": {"structured_outputs": {"json": {"type": "array", "minItems": 10**9}}},
}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("more", ONCE_BROKE.values(), ids=ONCE_BROKE)
def test_inputs_that_once_broke_the_service_are_refused(client: httpx.Client, path: str, more: dict[str, Any]):
    asked = ORDINARY if "chat" in path else {"model": "policy", "prompt": "3 + 4 =", "max_tokens": 8}
    reply = post(client, path, asked | more)
    assert reply.status_code == 400
    assert_in_order(reply)
