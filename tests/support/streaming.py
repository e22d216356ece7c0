"""Streams that are under way while their service stops."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.support.serving import Served

STREAMS = 8


def assert_begun_streams_end_whole(
    served: Served, stop: Callable[[], object], *, num_tokens: int, headers: Mapping[str, str] | None = None
) -> None:
    """Call `stop` once `STREAMS` streams have begun; assert that each ends complete, with its turn on disk."""
    begun = threading.Barrier(STREAMS + 1)
    body = {
        "model": "policy",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "stream": True,
        "max_tokens": num_tokens,
        "min_tokens": num_tokens,
        "ignore_eos": True,
    }

    def read_stream() -> tuple[str, str]:
        url = f"{served.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as reply:
            pieces = reply.iter_text()
            text = next(pieces)
            begun.wait(timeout=60)
            return reply.headers["x-sdpo-turn-id"], text + "".join(pieces)

    with ThreadPoolExecutor(STREAMS) as pool:
        streams = [pool.submit(read_stream) for _ in range(STREAMS)]
        begun.wait(timeout=60)
        stop()
        received = [stream.result() for stream in streams]
    turns = served.turns()
    for turn_id, text in received:
        assert text.endswith("data: [DONE]\n\n")
        assert "not stored" not in text
        assert len(turns[turn_id].response_ids) == num_tokens
