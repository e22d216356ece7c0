"""Clients that hang up, read slowly or only hold connections: nothing of them is left, and others do not notice."""

import asyncio
import statistics
import time

import httpx
import pytest

from tests.faults.repetitions import SLOW
from tests.faults.service_probes import LONG, Usage, Wire, at_most, chat, is_idle, metric, wait_until
from tests.support.serving import Served

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600 if SLOW else 600)]
HANG_UPS = 1000
PLAIN_HANG_UPS = 200
CONNECTIONS = 10_000
ROUNDS = 5 if SLOW else 1
AT_ONCE = 32
GROWN_MIB = 96
"""Memory that processes may grow by without having lost any: heaps of 2 GiB, and a cache of 64 MiB that the engine
touches as it goes. The second thousand hang-ups cost 31 to 98 MiB, four thousand more 43; so two come first."""
GROWN_FDS = 16
CHAT = "/v1/chat/completions"


def answers(served: Served) -> bool:
    reply = httpx.post(f"{served.url}{CHAT}", json=chat(max_tokens=8), timeout=60)
    return reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] >= 1


async def hang_up_in_a_stream(served: Served) -> None:
    wire = await Wire.to(served)
    await wire.send("POST", CHAT, chat(stream=True, **LONG))
    assert b"200" in await wire.reader.readuntil(b"\r\n")
    await wire.reader.readuntil(b"data: ")
    wire.drop()


async def hang_up_on_an_answer(served: Served) -> None:
    wire = await Wire.to(served)
    await wire.send("POST", CHAT, chat(**LONG))
    await asyncio.sleep(0.1)
    wire.drop()


def test_thousands_who_hang_up_leave_nothing_behind(served: Served):
    def leave(streams: int, plain: int) -> Usage:
        started = metric(served, "vllm:prompt_tokens_total")
        asyncio.run(at_most(AT_ONCE, (hang_up_in_a_stream(served) for _ in range(streams))))
        asyncio.run(at_most(AT_ONCE, (hang_up_on_an_answer(served) for _ in range(plain))))
        wait_until(lambda: is_idle(served), "an idle engine with an empty cache")
        assert metric(served, "vllm:prompt_tokens_total") - started >= streams, "the engine had them"
        return Usage.now()

    assert answers(served)
    wait_until(lambda: is_idle(served), "an idle engine to begin with")
    made = metric(served, "vllm:generation_tokens_total")
    leave(HANG_UPS, PLAIN_HANG_UPS)
    before = leave(HANG_UPS, PLAIN_HANG_UPS)
    for _ in range(ROUNDS):
        after = leave(HANG_UPS, PLAIN_HANG_UPS)
        assert after.rss_mib - before.rss_mib < GROWN_MIB
    made = metric(served, "vllm:generation_tokens_total") - made
    everybody = (HANG_UPS + PLAIN_HANG_UPS) * (ROUNDS + 2)
    assert made < everybody * LONG["max_tokens"] / 2, "nobody's answer went on without them"
    wait_until(lambda: Usage.now().fds <= before.fds + GROWN_FDS, "no file descriptor of theirs")
    assert answers(served)


def test_slow_readers_slow_nobody_else_down(served: Served):
    def seconds(asked: int) -> float:
        took = []
        with httpx.Client(timeout=120) as client:
            for _ in range(asked):
                began = time.monotonic()
                client.post(f"{served.url}{CHAT}", json=chat(max_tokens=16)).raise_for_status()
                took.append(time.monotonic() - began)
        return statistics.median(took)

    async def read_slowly(stop: asyncio.Event) -> int:
        wire = await Wire.to(served, buffer_bytes=4096)
        await wire.send("POST", CHAT, chat(stream=True, logprobs=True, top_logprobs=20, **LONG))
        read = 0
        while not stop.is_set():
            read += len(await wire.reader.read(1))
            await asyncio.sleep(1)
        wire.drop()
        return read

    async def beside(readers: int) -> float:
        stop = asyncio.Event()
        reading = [asyncio.ensure_future(read_slowly(stop)) for _ in range(readers)]
        # Their answers are made by then; what is left of them is unread.
        await asyncio.sleep(5)
        took = await asyncio.to_thread(seconds, 20)
        stop.set()
        assert min(await asyncio.gather(*reading)) >= 1
        return took

    seconds(5)
    before = Usage.now()
    alone = seconds(20)
    among = asyncio.run(beside(16))
    # Twice is noise on a machine with other work; a reader that blocks others costs them seconds.
    assert among < 3 * alone + 0.2
    wait_until(lambda: is_idle(served), "an idle engine")
    after = Usage.now()
    assert after.rss_mib - before.rss_mib < GROWN_MIB
    wait_until(lambda: Usage.now().fds <= before.fds + GROWN_FDS, "no file descriptor of theirs")


def test_ten_thousand_kept_connections_come_and_go(served: Served):
    async def hold(number: int) -> Wire:
        wire = await Wire.to(served)
        if number % 2:
            await wire.send("GET", "/v1/models")
            assert b"200" in await wire.reader.readuntil(b"\r\n")
        return wire

    async def wave(size: int) -> None:
        wires = await at_most(100, (hold(number) for number in range(size)))
        for number, wire in enumerate(wires):
            if number % 4 < 2:
                wire.drop()
            else:
                wire.writer.close()
        await asyncio.gather(*(wire.writer.wait_closed() for wire in wires), return_exceptions=True)

    asyncio.run(wave(100))
    before = Usage.now()
    for _ in range(ROUNDS):
        for _ in range(CONNECTIONS // 500):
            asyncio.run(wave(500))
    wait_until(lambda: Usage.now().fds <= before.fds + GROWN_FDS, "no file descriptor of theirs")
    assert Usage.now().rss_mib - before.rss_mib < GROWN_MIB
    assert answers(served)
