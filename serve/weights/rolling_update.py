"""Replicas of one run swap one after the other, and where HAProxy can be asked to, it sends requests to the others.

The turn is a lock on a file beside the pointer, where every replica of the run reads: the system takes it from one that
is killed. HAProxy is asked over its own socket on this machine: a replica goes when another of the same application is
there to take over, and comes back whatever became of the swap. Without HAProxy, requests wait at the gate.
"""

import asyncio
import csv
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from sdpo_ray.io.locks import lock_file

logger = logging.getLogger(__name__)
_POLL_S = 0.05
_ANSWER_S = 1.0
_RUNNING, _READY = "2", "0"
"""`srv_op_state` and `srv_admin_state` of HAProxy's management guide, 9.3, "show servers state"."""


@dataclass(frozen=True, slots=True)
class HAProxyServer:
    """One replica in one backend of HAProxy."""

    backend: str
    server: str


class HAProxyClient:
    """The HAProxy of this machine, as the replica `unique_id` of Ray Serve sees it."""

    def __init__(self, socket: Path, unique_id: str) -> None:
        self._socket = socket
        self._unique_id = unique_id

    @classmethod
    def here(cls, unique_id: str, node_id: str, environment: Mapping[str, str] = os.environ) -> "HAProxyClient | None":
        """The one Ray Serve runs on this node; None where it runs none."""
        if environment.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
            return None
        path = Path(environment.get("RAY_SERVE_HAPROXY_SOCKET_PATH", "/tmp/haproxy-serve/admin.sock"))
        # Ray Serve puts each node's files into a folder of its own.
        return cls(path.parent / node_id / path.name, unique_id)

    async def leave(self) -> list[HAProxyServer]:
        """Take no new requests. Returns where this replica was; empty when nobody takes over, or there is no answer."""
        left: list[HAProxyServer] = []
        try:
            for entry in to_leave(await self._say("show servers state"), self._unique_id):
                left.append(entry)
                await self._say(f"set server {entry.backend}/{entry.server} state drain")
        except OSError as error:
            logger.warning("HAProxy was not asked to send requests elsewhere: %s", error)
        return left

    async def come_back(self, left: list[HAProxyServer]) -> None:
        for entry in left:
            try:
                await self._say(f"set server {entry.backend}/{entry.server} state ready")
            except OSError as error:
                logger.error("HAProxy may still send nothing to %s: %s", entry.server, error)

    async def _say(self, command: str) -> str:
        try:
            async with asyncio.timeout(_ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    writer.write(f"{command}\n".encode())
                    return (await reader.read()).decode(errors="replace")
                finally:
                    writer.close()
        except TimeoutError as error:
            raise OSError(f"{self._socket} says nothing") from error


def to_leave(state: str, unique_id: str) -> list[HAProxyServer]:
    """This replica's entries in `show servers state` whose backend has another running replica of its deployment."""
    lines = [line for line in state.splitlines() if line and line != "1"]
    if not lines or not lines[0].startswith("# "):
        return []
    rows = list(csv.DictReader([lines[0].removeprefix("# "), *lines[1:]], delimiter=" "))
    mine = [row for row in rows if row["srv_name"].endswith(unique_id)]
    found = []
    for row in mine:
        deployment = row["srv_name"].removesuffix(unique_id)
        others = (
            other
            for other in rows
            if other["be_id"] == row["be_id"]
            and other["srv_name"] != row["srv_name"]
            and other["srv_name"].startswith(deployment)
            and (other["srv_op_state"], other["srv_admin_state"]) == (_RUNNING, _READY)
        )
        if any(others):
            found.append(HAProxyServer(row["be_name"], row["srv_name"]))
    return found


class RollingUpdate:
    """Turns of one replica among those of its run that serve the same people. `lock` is a file they share."""

    def __init__(self, lock: Path, balance: HAProxyClient | None) -> None:
        self._lock = lock
        self._balance = balance

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        """Wait for this replica's turn; gives whether new requests go elsewhere while it lasts."""
        lock = lock_file(self._lock)
        while not _acquired(lock):
            await asyncio.sleep(_POLL_S)
        try:
            left = await self._balance.leave() if self._balance is not None else []
            try:
                yield bool(left)
            finally:
                if self._balance is not None:
                    await asyncio.shield(self._balance.come_back(left))
        finally:
            lock.release()


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True
