"""Environment of HAProxy mode: names that Ray reads, paths that fit, ports that two clusters do not share."""

import ast
import importlib.util
import os
import subprocess
from pathlib import Path

from sdpo_ray.upstream.haproxy import HAPROXY, own_haproxy
from tests.support.paths import REPOSITORY

MAX_SOCKET_CHARS = 107
"""sizeof(sun_path) - 1 in unix(7)."""
NODE_ID_CHARS = 56


def test_ray_reads_every_variable_that_is_set():
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    ray = Path(spec.submodule_search_locations[0])
    files = (ray / "serve" / "_private" / "constants.py", ray / "_private" / "ray_constants.py")
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    read = {node.value for node in nodes if isinstance(node, ast.Constant)}
    assert own_haproxy(Path("/tmp/x")).keys() <= read


def test_all_files_of_a_cluster_are_in_its_own_folder_and_sockets_have_names_that_fit():
    told = own_haproxy(Path("/tmp/sdpo-ray-abcdefgh"))
    paths = {name: value for name, value in told.items() if value.startswith("/")}
    assert len(paths) == 5
    for name, path in paths.items():
        assert Path(path).is_relative_to("/tmp/sdpo-ray-abcdefgh"), name
        if name.endswith("SOCKET_PATH"):
            folder, _, file = path.rpartition("/")
            # Ray puts the node's id between, and HAProxy binds to a name with its process id first.
            assert len(f"{folder}/{'n' * NODE_ID_CHARS}/{file}.4194304.tmp") <= MAX_SOCKET_CHARS


def test_a_clusters_ports_are_its_own_and_outside_of_what_ray_and_the_system_give_out():
    for _ in range(50):
        told = own_haproxy(Path("/tmp/x"))
        single = [int(value) for name, value in told.items() if name.endswith("_PORT") and "INGRESS" not in name]
        replicas = range(
            int(told["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"]), int(told["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"])
        )
        assert len(set(single)) == 3
        assert not set(single) & set(replicas)
        assert len(replicas) > 50
        assert min(*single, replicas[0]) >= 20_000
        assert replicas[-1] < 32_768


def test_the_shell_script_says_what_the_code_says():
    script = REPOSITORY / "cluster" / "haproxy.sh"
    shell = ["sh", "-c", f". {script}; env"]
    said = subprocess.run(shell, env={"PATH": os.environ["PATH"]}, check=True, capture_output=True, text=True).stdout
    assert dict(line.split("=", 1) for line in said.splitlines() if line.startswith("RAY_")) == HAPROXY


def test_what_every_cluster_needs_is_in_what_a_shared_machine_needs():
    assert HAPROXY.items() <= own_haproxy(Path("/tmp/x")).items()
