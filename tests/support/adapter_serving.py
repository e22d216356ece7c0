"""Applications that serve LoRA adapters, chats with them, and the policy that sampled each answer."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from sdpo_ray.io.paths import Layout
from sdpo_ray.records import BASE_VERSION, Turn
from tests.support.adapters import WEIGHTS
from tests.support.paths import CHECKPOINT
from tests.support.serving import ReferencePolicy, Served, deployed

QUESTION = "What is the capital of France?"

UNUSED_VERSIONS = count(100)
"""Version numbers for releases that must be refused; each test takes its own, so that refusals can be told apart."""

LONG = "Tell me of the seas and the rivers. " * 12
"""More than two of the engine's cache blocks of 128 tokens."""


def deploy(url: str, root: Path, name: str, *overrides: str) -> Iterator[Served]:
    """A separate application at `/name`, beside those of other tests, that takes two LoRA adapters."""
    settings = (f"root={root}", f"policy.base={CHECKPOINT}", "serve.adapters=2", "serve.max_lora_rank=8", *overrides)
    with deployed(name, settings):
        yield Served(url=f"{url}/{name}", layout=Layout(root), base=CHECKPOINT, overrides=settings)


@dataclass(frozen=True, slots=True)
class ChatReply:
    status: int
    headers: httpx.Headers
    text: str


def ask_policy(served: Served, content: str = QUESTION, *, path: str = "chat/completions", **more: Any) -> ChatReply:
    body = {"model": "policy", "max_tokens": 24, "temperature": 1.0} | more
    if path == "chat/completions":
        body |= {"messages": [{"role": "user", "content": content}]}
    reply = httpx.post(f"{served.url}/v1/{path}", json=body, timeout=60)
    return ChatReply(reply.status_code, reply.headers, reply.text)


def recorded_turn(served: Served, **more: Any) -> Turn:
    """The turn that one chat left in the journal."""
    reply = ask_policy(served, **more)
    assert reply.status == 200, reply.text
    return served.turns()[reply.headers["x-sdpo-turn-id"]]


def assert_sampled_from(path: str | Path, turn: Turn) -> None:
    """The log-probs of `turn` are those of the policy at `path`, computed by transformers."""
    assert ReferencePolicy(Path(path)).of_response(turn) == pytest.approx(turn.response_logprobs, abs=2e-3)


def serve_base(served: Served) -> None:
    """Release the base and wait until it is served."""
    served.layout.release_pointer.write_bytes(served.layout.release(BASE_VERSION).read_bytes())
    served.wait_for("x-sdpo-policy-version", str(BASE_VERSION))


@contextmanager
def always_answering(served: Served) -> Iterator[None]:
    """Send chats all the while, and check that each was answered with 200."""
    stop = threading.Event()

    def send() -> list[int]:
        statuses = []
        while not stop.is_set():
            statuses.append(ask_policy(served, max_tokens=4).status)
        return statuses

    with ThreadPoolExecutor(2) as pool:
        senders = [pool.submit(send) for _ in range(2)]
        try:
            yield
        finally:
            stop.set()
        assert {status for each in senders for status in each.result()} == {200}


def torn(folder: Path) -> None:
    """Cut the last bytes off the adapter's weights."""
    weights = folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1000])
