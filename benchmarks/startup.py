"""Time from start to the first answer: ours on Ray Serve against `vllm serve`, same model, alternating in one run.

    PYTHONPATH=. python benchmarks/startup.py --rounds 3 --json startup.json

Both serve the tiny policy in fp32 on the CPU with a small KV cache, and count as started when a chat request is
answered. Ours is timed twice: from deploying on a running Ray cluster, and including the cluster's start. `vllm serve`
runs as its documentation says for this model and these limits (`--enforce-eager`, no compilation); it is started by its
module, since the name of the CPU distribution breaks the `vllm` command.

The budget shows what our seconds are spent on, from what the replica logs while it starts
(`serve/lifecycle/startup_timer.py`). A round takes about a minute; the default is three.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from progress import Steps
from report import as_markdown, show

from sdpo_ray.cluster.local_cluster import LocalCluster, free_port, stop_tree
from sdpo_ray.cluster.serve_deploy import deploy
from sdpo_ray.config import load_run
from serve.ray_options import CPU_ENV

REPOSITORY = Path(__file__).parent.parent
RECIPE = REPOSITORY / "jobs" / "recipes" / "laptop.toml"
TIMEOUT_S = 300
PHASES = {
    "ray": "Ray itself: head node, dashboard",
    "deploy": "Serve's controller and HAProxy, until a worker starts",
    "process": "the replica's process: Python, Ray",
    "imports": "vLLM and torch, in the replica and in the engine's process at once",
    "engine": "vLLM's engine: weights, KV cache",
    "policy": "tokenizer, known prompt's log-probs, release verified",
    "app": "vLLM's OpenAI application and ours around it",
    "first answer": "HAProxy sees the replica; one token",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of ours, in seconds."""

    deployed_s: float
    """From deploying to the first answer."""
    with_ray_s: float
    """The same, from starting Ray."""
    phases: dict[str, float]
    """Seconds by the keys of `PHASES`; they add up to `with_ray_s`."""


def first_answer(url: str, began: float) -> float:
    """Seconds from `began` until the endpoint has answered one chat request."""
    body = {
        "model": "policy",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 1,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    while time.monotonic() - began < TIMEOUT_S:
        try:
            urllib.request.urlopen(request, timeout=30).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
        else:
            return time.monotonic() - began
    raise TimeoutError(f"{url} gave no answer in {TIMEOUT_S} s")


def vllm_serve(log: Path) -> float:
    run = load_run(RECIPE)
    port = free_port()
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(run.base), "--port", str(port)]
    argv += ["--host", "127.0.0.1", "--served-model-name", "policy", "--dtype", run.policy.dtype, "--enforce-eager"]
    argv += ["--max-model-len", str(run.policy.max_model_len), "--max-num-seqs", str(run.serve.max_num_seqs)]
    argv += ["--kv-cache-memory-bytes", str(run.serve.kv_cache_mib << 20)]
    environment = os.environ | CPU_ENV | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    began = time.monotonic()
    with log.open("ab") as file:
        process = subprocess.Popen(argv, env=environment, stdout=file, stderr=file)
    try:
        return first_answer(f"http://127.0.0.1:{port}", began)
    finally:
        stop_tree(process.pid)


def ours(log: Path) -> Start:
    with tempfile.TemporaryDirectory() as root:
        overrides = [f"root={root}", f"serve.port={free_port()}"]
        run = load_run(RECIPE, overrides)
        started = time.monotonic()
        with LocalCluster(num_cpus=4, log=log) as cluster:
            began, began_at_s = time.monotonic(), time.time()
            deploy(cluster.dashboard, run, RECIPE, overrides, only=("policy",), wait=False)
            deployed_s = first_answer(run.serve.url, began)
            logged = replica_start(cluster.logs / "serve")
            phases = {"ray": began - started, "deploy": logged["began_at_s"] - began_at_s, **logged["phases"]}
            phases["first answer"] = began - started + deployed_s - sum(phases.values())
            return Start(deployed_s=deployed_s, with_ray_s=began - started + deployed_s, phases=phases)


def replica_start(logs: Path) -> dict[str, Any]:
    """The start record in the replica's log. Waits until Ray Serve has written it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for file in logs.glob("replica_*.log"):
            for line in file.read_text().splitlines():
                if '"phases"' in line:
                    return json.loads(line)
        time.sleep(0.2)
    raise TimeoutError(f"no replica logged its start in {logs}")


def budget(starts: list[Start]) -> list[tuple[str, ...]]:
    """The table of medians, its head first."""
    rows = [("phase", "s", "what it is")]
    for phase, description in PHASES.items():
        rows.append((phase, f"{statistics.median(start.phases[phase] for start in starts):.1f}", description))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="starts of each, alternating")
    parser.add_argument("--json", type=Path, help="also write the medians and the ratio here")
    arguments = parser.parse_args()
    log = Path(tempfile.mkstemp(suffix=".log")[1])
    bares, starts = [], []
    with Steps("startup", 2 * arguments.rounds) as steps:
        for _ in range(arguments.rounds):
            bares.append(vllm_serve(log))
            steps.done(f"vllm serve {bares[-1]:.1f} s")
            starts.append(ours(log))
            steps.done(f"ours {starts[-1].deployed_s:.1f} s, with Ray's start {starts[-1].with_ray_s:.1f} s")
    bare = statistics.median(bares)
    deployed = statistics.median(start.deployed_s for start in starts)
    with_ray = statistics.median(start.with_ray_s for start in starts)
    result = {"vllm_serve_s": bare, "ours_s": deployed, "ours_with_ray_s": with_ray, "ratio": deployed / bare}
    print("medians: " + ", ".join(f"{name} {value:.2f}" for name, value in result.items()))
    table = budget(starts)
    show(table)
    if arguments.json:
        print(as_markdown(table))
        phases = {phase: statistics.median(start.phases[phase] for start in starts) for phase in PHASES}
        arguments.json.write_text(json.dumps(result | {"budget_s": phases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
