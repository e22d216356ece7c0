"""Autoscaling: load starts a second replica without failing a request; a conversation stays with its replica.

The tests use a separate application, which starts with one engine and ends with two.
"""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from sdpo_ray.headers import CONVERSATION_ID, TURN_ID
from tests.support.paths import CHECKPOINT
from tests.support.serving import deployed

# Two engines are started one after the other on a shared machine.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CLIENTS, CONVERSATIONS, TURNS = 8, 16, 3


@pytest.fixture(scope="module")
def scaled(serve_http: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An application of one replica that scales up at two concurrent requests. Yields its URL."""
    overrides = [
        f"root={tmp_path_factory.mktemp('scaled')}",
        f"policy.base={CHECKPOINT}",
        "serve.autoscale.max_replicas=2",
        "serve.autoscale.target_ongoing_requests=2",
        "serve.autoscale.upscale_delay_s=0",
    ]
    with deployed("scaled", overrides):
        yield f"{serve_http}/scaled"


def num_running() -> int:
    from ray import serve

    states = serve.status().applications["scaled"].deployments["policy"].replica_states
    return states.get("RUNNING", 0)


class Load:
    """Clients that send plain and streamed requests without a pause while the context is entered."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._over = threading.Event()
        self._clients = ThreadPoolExecutor(CLIENTS)
        self.statuses: list[int] = []
        self.not_recorded = 0

    def __enter__(self) -> "Load":
        self._asking = [self._clients.submit(self._ask, bool(index % 2)) for index in range(CLIENTS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._clients.shutdown()
        for asking in self._asking:
            asking.result()

    def _ask(self, stream: bool) -> None:
        body = {"model": "policy", "messages": QUESTION, "max_tokens": 64, "ignore_eos": True, "stream": stream}
        with httpx.Client(timeout=60) as client:
            while not self._over.is_set():
                reply = client.post(f"{self._url}/v1/chat/completions", json=body)
                ended = not stream or reply.text.endswith("data: [DONE]\n\n")
                self.statuses.append(reply.status_code if ended else 0)
                self.not_recorded += TURN_ID not in reply.headers


def replicas_by_request(wanted: set[str], timeout_s: float = 30) -> dict[str, str]:
    """The replica that answered each request, from the replicas' logs."""
    import ray

    folder = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"
    deadline = time.monotonic() + timeout_s
    found: dict[str, str] = {}
    while found.keys() != wanted and time.monotonic() < deadline:
        for file in folder.glob("replica_*.log"):
            lines = (json.loads(line) for line in file.read_text().splitlines() if '"request_id"' in line)
            found |= {line["request_id"]: line["replica"] for line in lines if line["request_id"] in wanted}
        time.sleep(0.2)
    return found


def test_load_makes_a_second_replica_no_request_is_lost_and_conversations_stay_with_their_replica(scaled: str):
    with Load(scaled) as load:
        deadline = time.monotonic() + 300
        while num_running() < 2 and time.monotonic() < deadline:
            time.sleep(0.5)
        # HAProxy learns of the new replica meanwhile.
        time.sleep(3)
    assert num_running() == 2
    assert set(load.statuses) == {200}
    assert load.not_recorded == 0

    asked: dict[str, str] = {}
    with httpx.Client(timeout=60) as client:
        for number in range(CONVERSATIONS * TURNS):
            for conversation in (f"conversation-{number % CONVERSATIONS}", ""):
                request_id = f"{conversation or 'nobody'}.{number}"
                headers = {"x-request-id": request_id} | ({CONVERSATION_ID: conversation} if conversation else {})
                body = {"model": "policy", "messages": QUESTION, "max_tokens": 2}
                reply = client.post(f"{scaled}/v1/chat/completions", json=body, headers=headers)
                assert reply.status_code == 200, reply.text
                asked[request_id] = conversation
    answered = replicas_by_request(set(asked))
    assert answered.keys() == asked.keys()
    replicas: dict[str, set[str]] = {}
    for request_id, conversation in asked.items():
        replicas.setdefault(conversation, set()).add(answered[request_id])
    without = replicas.pop("")
    assert len(without) == 2
    assert {len(each) for each in replicas.values()} == {1}
    # All sixteen are on one replica by chance once in 32,768 runs.
    assert set().union(*replicas.values()) == without
