import socket
import subprocess
import sys

import psutil
import pytest

from sdpo_ray.cluster.local_cluster import free_port, require_port, stop_tree
from sdpo_ray.errors import ConfigError


def test_a_port_in_use_is_said_in_plain_words():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} is in use, and the API needs it"):
            require_port(port, "the API")
    require_port(free_port(), "the API")


def test_stopping_a_tree_stops_children_that_ignore_the_request():
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {stubborn!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        assert len(family) == 2
        stop_tree(process.pid, grace_s=0.5)
    assert [p.pid for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


def test_stopping_what_is_gone_is_no_error():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    stop_tree(process.pid)
