"""Start and stop a Ray cluster on this machine with its own ports, folder and processes."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from sdpo_ray.errors import ConfigError
from sdpo_ray.upstream.haproxy import own_haproxy
from sdpo_ray.upstream.ray import TRAIN_POLLING

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    **TRAIN_POLLING,
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_port(port: int, purpose: str) -> None:
    """Raise ConfigError if a process listens on `port`."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise ConfigError(
                f"port {port} is in use, and {purpose} needs it: stop the process that listens there, or choose another"
            )


class LocalCluster:
    """`ray start --head --block` as a child process: a context manager that stops it and deletes its folder."""

    def __init__(self, *, num_cpus: int, log: Path) -> None:
        self._num_cpus = num_cpus
        self._log = log
        self._folder = Path(tempfile.mkdtemp(prefix="sdpo-ray-"))
        self._haproxy = own_haproxy(self._folder)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.dashboard = f"http://127.0.0.1:{free_port()}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Root process of the cluster."""
        assert self._process is not None, "the cluster is not started"
        return self._process.pid

    @property
    def logs(self) -> Path:
        """Directory of Ray's logs; deleted with the cluster."""
        return self._folder / "session_latest" / "logs"

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a process that connects to this cluster; `python` and `ray` are this interpreter's."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**kept, **ENVIRONMENT, **self._haproxy, "PATH": path, "RAY_ADDRESS": self.address}

    def __enter__(self) -> Self:
        environment = self.environment
        del environment["RAY_ADDRESS"]
        command = [
            str(Path(sys.executable).parent / "ray"),
            "start",
            "--head",
            "--block",
            f"--port={self.port}",
            f"--num-cpus={self._num_cpus}",
            f"--temp-dir={self._folder}",
            "--node-ip-address=127.0.0.1",
            "--include-dashboard=true",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self.dashboard.rpartition(':')[2]}",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--object-store-memory={512 << 20}",
            "--disable-usage-stats",
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True, cwd=self._folder
            )
        self._wait(timeout_s=90)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            stop_tree(self._process.pid)
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                break
            with (
                contextlib.suppress(urllib.error.URLError, OSError),
                urllib.request.urlopen(f"{self.dashboard}/api/serve/applications/", timeout=5),
            ):
                return
            time.sleep(0.2)
        raise ConfigError(f"Ray did not start; its output is in {self._log}")


def stop_tree(pid: int, grace_s: float = 10) -> None:
    """Stop a process and all its descendants: SIGTERM first, SIGKILL after `grace_s` seconds."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=grace_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
