"""Load from a separate process: concurrent clients with one keep-alive connection each, answers of a fixed length.

`benchmarks/serving.py` runs it as a program: it reads a `Load` as JSON from its argument and prints a `LoadResult`.
"""

import asyncio
import sys
import time

import aiohttp
import msgspec
import uvloop

PROMPTS = (
    "What is the capital of France?",
    "Which river flows through Vienna?",
    "Who wrote the book that you like best?",
    "How many legs has a spider?",
)


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The requests that are sent to one server in one measurement."""

    url: str
    clients: int
    requests: int
    """Number of requests of each client, one after the other."""
    stream: bool
    tokens: int
    """Exact length of every answer."""
    headers: dict[str, str] = {}


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """Timings of one measurement, in seconds, in the order in which answers ended."""

    elapsed_s: float
    latencies_s: list[float]
    ttfts_s: list[float]
    """Times to the first token of streams; empty for plain answers."""
    receipts: int
    """Number of answers whose headers name a turn on disk."""
    cpu_s: float
    """CPU time of this process during the measurement."""


def request_body(load: Load, number: int) -> bytes:
    body = {
        "model": "policy",
        "messages": [{"role": "user", "content": f"{PROMPTS[number % len(PROMPTS)]} ({number})"}],
        "max_tokens": load.tokens,
        "min_tokens": load.tokens,
        "ignore_eos": True,
        "temperature": 1.0,
    }
    if load.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return msgspec.json.encode(body)


async def send(session: aiohttp.ClientSession, load: Load, number: int) -> tuple[float, float | None, bool]:
    """Latency, time to the first token of a stream, and whether there was a receipt.

    Raises RuntimeError for any status but 200, another length, and a stream that broke off.
    """
    began = time.perf_counter()
    first = None
    async with session.post(f"{load.url}/v1/chat/completions", data=request_body(load, number)) as response:
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {(await response.text())[:300]}")
        receipt = "x-sdpo-turn-id" in response.headers
        parts = []
        async for part in response.content.iter_any():
            if first is None and b'"content":' in part.replace(b'"content":""', b""):
                first = time.perf_counter() - began
            parts.append(part)
    latency = time.perf_counter() - began
    answer = b"".join(parts)
    if b'"completion_tokens":%d' % load.tokens not in answer:
        raise RuntimeError(f"not {load.tokens} tokens: {answer[-400:]!r}")
    if load.stream and (first is None or not answer.endswith(b"data: [DONE]\n\n") or b"not stored" in answer):
        raise RuntimeError(f"a broken stream: {answer[-400:]!r}")
    return latency, first if load.stream else None, receipt


async def run(load: Load) -> LoadResult:
    async def client(index: int) -> list[tuple[float, float | None, bool]]:
        return [await send(session, load, index + load.clients * each) for each in range(load.requests)]

    connector = aiohttp.TCPConnector(limit=load.clients, keepalive_timeout=60)
    headers = {"content-type": "application/json", **load.headers}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        began, cpu = time.perf_counter(), time.process_time()
        answers = [each for ended in await asyncio.gather(*map(client, range(load.clients))) for each in ended]
        elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
    return LoadResult(
        elapsed_s=elapsed,
        latencies_s=[latency for latency, _, _ in answers],
        ttfts_s=[first for _, first, _ in answers if first is not None],
        receipts=sum(receipt for _, _, receipt in answers),
        cpu_s=cpu,
    )


if __name__ == "__main__":
    load = msgspec.json.decode(sys.argv[1], type=Load)
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(run(load))))
