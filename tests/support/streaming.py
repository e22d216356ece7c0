"""Streams that have begun when their service is told to stop."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.support.serving import Served

STREAMS = 8


def assert_begun_streams_end_whole(
    served: Served, stop: Callable[[], object], *, num_tokens: int, headers: Mapping[str, str] | None = None
) -> None:
    """Call `stop` once `STREAMS` of so many tokens have begun: each ends as it should, with its turn on disk."""
    begun = threading.Barrier(STREAMS + 1)
    body = {
        "model": "policy",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "stream": True,
        "max_tokens": num_tokens,
        "min_tokens": num_tokens,
        "ignore_eos": True,
    }

    def listen() -> tuple[str, str]:
        url = f"{served.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as reply:
            pieces = reply.iter_text()
            text = next(pieces)
            begun.wait(timeout=60)
            return reply.headers["x-sdpo-turn-id"], text + "".join(pieces)

    with ThreadPoolExecutor(STREAMS) as pool:
        seats = [pool.submit(listen) for _ in range(STREAMS)]
        begun.wait(timeout=60)
        stop()
        heard = [seat.result() for seat in seats]
    turns = served.turns()
    for turn_id, text in heard:
        assert text.endswith("data: [DONE]\n\n")
        assert "not stored" not in text
        assert len(turns[turn_id].response_ids) == num_tokens
