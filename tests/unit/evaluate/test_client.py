import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest

from sdpo_ray.errors import DataError
from sdpo_ray.evaluate.client import Answers, generate, load_answers, save_answers, seed_of
from sdpo_ray.records import FinishReason

PROMPTS = [f"question {index}" for index in range(20)]


class Endpoint(ThreadingHTTPServer):
    """Echoes each question from policy version 3; `troubles` come first, one a request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.troubles: list[int] = []
        self.version: str | None = "3"
        self.finish_reason = "stop"
        self.usage: dict[str, int] | None = {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10}
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append(body)
        self.server.keys.add(self.headers["authorization"])
        status = self.server.troubles.pop(0) if self.server.troubles else 200
        choice = {
            "index": 0,
            "finish_reason": self.server.finish_reason,
            "message": {"role": "assistant", "content": body["messages"][-1]["content"].upper()},
        }
        reply = {"id": "c", "object": "chat.completion", "created": 0, "model": "policy", "choices": [choice]}
        content = json.dumps(reply | {"usage": self.server.usage}).encode()
        self.send_response(status)
        if self.server.version is not None:
            self.send_header("x-sdpo-policy-version", self.server.version)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def answers_of(endpoint: Endpoint, progress: list[int] | None = None, **changes: Any) -> Answers:
    given: dict[str, Any] = {"max_tokens": 8, "temperature": 1.0, "seed": 5, "concurrency": 4} | changes
    return asyncio.run(
        generate(
            endpoint.url,
            "key",
            "policy",
            PROMPTS,
            policy_version=3,
            on_progress=(progress if progress is not None else []).append,
            **given,
        )
    )


def test_answers_come_in_the_order_of_the_prompts_with_the_engines_own_counts(endpoint: Endpoint):
    progress: list[int] = []
    answers = answers_of(endpoint, progress)
    assert [answer.prompt for answer in answers] == PROMPTS
    assert [answer.text for answer in answers] == [prompt.upper() for prompt in PROMPTS]
    assert {(a.num_tokens, a.finish_reason, a.policy_version) for a in answers} == {(7, FinishReason.STOP, 3)}
    assert progress == list(range(1, 21))
    assert endpoint.keys == {"Bearer key"}


def test_every_prompt_has_its_own_seed_and_keeps_it_for_the_next_policy(endpoint: Endpoint):
    answers_of(endpoint)
    first = {request["messages"][0]["content"]: request["seed"] for request in endpoint.requests}
    endpoint.requests.clear()
    answers_of(endpoint, concurrency=1)
    assert first == {request["messages"][0]["content"]: request["seed"] for request in endpoint.requests}
    assert len(set(first.values())) == len(PROMPTS)
    assert seed_of(5, 0) != seed_of(6, 0)


def test_a_busy_engine_is_asked_again(endpoint: Endpoint):
    endpoint.troubles = [503, 429]
    assert len(answers_of(endpoint, concurrency=1)) == len(PROMPTS)
    assert len(endpoint.requests) == len(PROMPTS) + 2


def test_an_engine_that_refuses_ends_the_evaluation(endpoint: Endpoint):
    endpoint.troubles = [400]
    with pytest.raises(openai.BadRequestError):
        answers_of(endpoint)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("version", "2", "v3 is evaluated, but 2 answered"),
        ("version", None, "no version answered"),
        ("usage", None, "sent no token count"),
        ("finish_reason", "content_filter", "ended with 'content_filter'"),
    ],
)
def test_an_answer_that_proves_nothing_about_the_candidate_is_refused(
    endpoint: Endpoint, name: str, value: str | None, why: str
):
    setattr(endpoint, name, value)
    with pytest.raises(DataError, match=why):
        answers_of(endpoint)


def test_answers_are_read_back_as_they_were_written(endpoint: Endpoint, tmp_path: Path):
    answers = answers_of(endpoint)
    save_answers(tmp_path / "answers.json", answers)
    assert load_answers(tmp_path / "answers.json") == answers


def test_a_file_that_holds_something_else_is_refused(tmp_path: Path):
    (tmp_path / "answers.json").write_text('[{"prompt": "p"}]')
    with pytest.raises(DataError, match=r"answers\.json"):
        load_answers(tmp_path / "answers.json")
