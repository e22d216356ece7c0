"""Checks of every reply of the API: it comes in time, and is an answer or an error in OpenAI's shape."""

from collections.abc import Mapping
from typing import Any

import httpx

from tests.faults.repetitions import SLOW
from tests.support.serving import Served

EXAMPLES = 2000 if SLOW else 150
TIMEOUT_S = 60
"""Longer than this is a hang, even on a busy machine."""
ORDINARY = {"model": "policy", "messages": [{"role": "user", "content": "What is 3 + 4?"}], "max_tokens": 8}


def assert_in_order(reply: httpx.Response) -> None:
    """Assert an answer, or a client error in OpenAI's shape."""
    assert reply.status_code < 500, reply.text
    if reply.status_code >= 400:
        assert_error(reply.json())
    elif reply.headers["content-type"].startswith("text/event-stream"):
        assert reply.text.endswith("data: [DONE]\n\n"), "the stream was broken off"
        assert '"error"' not in reply.text


def assert_error(said: Mapping[str, Any]) -> None:
    error = said["error"]
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert isinstance(error["code"], int | str)


def assert_still_answers(served: Served) -> None:
    reply = httpx.post(f"{served.url}/v1/chat/completions", json=ORDINARY, timeout=TIMEOUT_S)
    assert reply.status_code == 200
    assert reply.json()["usage"]["completion_tokens"] >= 1
