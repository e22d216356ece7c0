"""Replicas swap one after the other, and drain themselves in HAProxy where another one is ready."""

import asyncio
import multiprocessing
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sdpo_ray.upstream.haproxy import HAProxyClient, HAProxyServer, replaceable_servers
from serve.weights.rolling_update import RollingUpdate

STATE = """1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight
4 http-users 1 SERVE_REPLICA__users-policy-aaa 127.0.0.1 {a} 0 1
4 http-users 2 SERVE_REPLICA__users-policy-bbb 127.0.0.1 {b} {admin} 1
4 http-users 3 SERVE_PROXY_ACTOR-node 127.0.0.1 2 0 1
5 http-evaluator 1 SERVE_REPLICA__evaluator-policy-ccc 127.0.0.1 2 0 1
"""


@pytest.mark.parametrize(
    ("b", "admin", "leaves"),
    [("2", "0", True), ("0", "0", False), ("1", "0", False), ("2", "8", False), ("2", "1", False)],
    ids=["ready", "down", "starting", "draining", "in maintenance"],
)
def test_a_replica_leaves_only_where_another_of_its_application_is_ready(b: str, admin: str, leaves: bool):
    state = STATE.format(a="2", b=b, admin=admin)
    expected = [HAProxyServer("http-users", "SERVE_REPLICA__users-policy-aaa")] if leaves else []
    assert replaceable_servers(state, "aaa") == expected
    assert replaceable_servers(state, "ccc") == []
    assert replaceable_servers(state, "ddd") == []


@pytest.mark.parametrize("state", ["", "\n", "1\n", "Unknown command.\n"])
def test_an_answer_that_is_none_keeps_the_replica_where_it_is(state: str):
    assert replaceable_servers(state, "aaa") == []


@asynccontextmanager
async def haproxy(folder: Path, said: list[str]) -> AsyncIterator[HAProxyClient]:
    """An admin socket that answers as HAProxy does, and records its commands."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = (await reader.readline()).decode().strip()
        said.append(command)
        writer.write(STATE.format(a="2", b="2", admin="0").encode() if command.startswith("show") else b"\n")
        await writer.drain()
        writer.close()

    (folder / "node").mkdir()
    server = await asyncio.start_unix_server(answer, folder / "node" / "admin")
    environment = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin")}
    client = HAProxyClient.here("aaa", "node", environment)
    assert client is not None
    async with server:
        yield client


def test_requests_go_elsewhere_for_as_long_as_a_turn_lasts_however_it_ends(tmp_path: Path):
    async def run() -> list[str]:
        said: list[str] = []
        async with haproxy(tmp_path, said) as client:
            with pytest.raises(RuntimeError):
                async with RollingUpdate(tmp_path / "lock", client).slot() as rerouted:
                    assert rerouted
                    assert said[-1].endswith("state drain")
                    raise RuntimeError("the swap failed")
        return said

    server = "http-users/SERVE_REPLICA__users-policy-aaa"
    assert asyncio.run(run()) == [
        "show servers state",
        f"set server {server} state drain",
        f"set server {server} state ready",
    ]


def test_without_haproxy_or_without_its_socket_a_turn_is_a_turn(tmp_path: Path):
    async def run(client: HAProxyClient | None) -> bool:
        async with RollingUpdate(tmp_path / "lock", client).slot() as rerouted:
            return rerouted

    assert HAProxyClient.here("aaa", "node", {}) is None
    assert asyncio.run(run(None)) is False
    assert asyncio.run(run(HAProxyClient(tmp_path / "no such socket", "aaa"))) is False


def test_one_after_the_other(tmp_path: Path):
    async def run() -> list[str]:
        steps: list[str] = []

        async def swap(name: str) -> None:
            async with RollingUpdate(tmp_path / "lock", None).slot():
                steps.append(f"{name} begins")
                await asyncio.sleep(0.01)
                steps.append(f"{name} ends")

        await asyncio.gather(swap("a"), swap("b"), swap("c"))
        return steps

    steps = asyncio.run(run())
    assert [step.split()[1] for step in steps] == ["begins", "ends"] * 3
    assert [step.split()[0] for step in steps[::2]] == [step.split()[0] for step in steps[1::2]]


def _hold(lock: Path, held: Any) -> None:
    async def forever() -> None:
        async with RollingUpdate(lock, None).slot():
            held.set()
            await asyncio.sleep(60)

    asyncio.run(forever())


def test_the_turn_of_a_replica_that_is_killed_is_over(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "lock", held))
    other.start()
    try:
        assert held.wait(60)

        async def turn() -> None:
            async with RollingUpdate(tmp_path / "lock", None).slot():
                pass

        async def run() -> None:
            mine = asyncio.ensure_future(turn())
            await asyncio.sleep(0.2)
            assert not mine.done()
            other.kill()
            await asyncio.wait_for(mine, 30)

        asyncio.run(run())
    finally:
        other.kill()
        other.join()
