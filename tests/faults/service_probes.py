"""Probes of a running service: its processes, its metrics, and raw connections to it."""

import asyncio
import contextlib
import json
import re
import socket
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse

import httpx
import psutil

from tests.support.serving import Served

LONG = {"max_tokens": 400, "min_tokens": 400, "ignore_eos": True}
"""Request fields of the longest answer that the tiny policy can give."""


def chat(text: str = "What is the capital of France?", **more: Any) -> dict[str, Any]:
    return {"model": "policy", "messages": [{"role": "user", "content": text}], **more}


def named(word: str, root: int | None = None) -> list[psutil.Process]:
    """Processes that descend from `root`, or from this test session, with `word` in their command line."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if word in " ".join(process.cmdline()):
                found.append(process)
    return found


def replicas() -> list[psutil.Process]:
    """The users' replicas."""
    return named("ServeReplica:users")


def engine_of(replica: psutil.Process) -> psutil.Process:
    (engine,) = [process for process in replica.children(recursive=True) if "EngineCore" in " ".join(process.cmdline())]
    return engine


@dataclass(frozen=True, slots=True)
class Usage:
    """File descriptors and memory of the processes of the service."""

    fds: int
    rss_mib: float

    @classmethod
    def now(cls) -> "Usage":
        behind = [*named("ProxyActor"), *replicas()]
        behind += [engine_of(replica) for replica in replicas()]
        return cls(
            fds=sum(process.num_fds() for process in behind),
            rss_mib=sum(process.memory_info().rss for process in behind) / (1 << 20),
        )


def metric(served: Served, name: str) -> float:
    """The sum of a metric over its labels."""
    page = httpx.get(f"{served.url}/metrics", timeout=60).text
    values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", page, re.MULTILINE)
    assert values, f"there is no {name}"
    return sum(map(float, values))


def is_idle(served: Served) -> bool:
    """Whether the engine has no requests and its cache is empty."""
    return all(
        metric(served, f"vllm:{name}") == 0
        for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    )


def wait_until(happens: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not happens():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.2)


@dataclass(slots=True)
class Wire:
    """One TCP connection to the service."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def to(cls, served: Served, *, buffer_bytes: int = 0) -> "Wire":
        address = urlparse(served.url)
        wire = socket.socket()
        wire.setblocking(False)
        if buffer_bytes:
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        await asyncio.get_running_loop().sock_connect(wire, (address.hostname, address.port))
        return cls(*await asyncio.open_connection(sock=wire, limit=buffer_bytes or 1 << 16))

    async def send(self, method: str, path: str, body: Any = None) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
        self.writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
        await self.writer.drain()

    def drop(self) -> None:
        """Close the connection with a reset."""
        wire = self.writer.get_extra_info("socket")
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


async def at_most(limit: int, work: Iterable[Any]) -> list[Any]:
    """Run the coroutines, at most `limit` at once."""
    semaphore = asyncio.Semaphore(limit)

    async def one(coroutine: Any) -> Any:
        async with semaphore:
            return await coroutine

    return await asyncio.gather(*(one(coroutine) for coroutine in work))
