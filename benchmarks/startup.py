"""From nothing to the first token: ours on Ray Serve against `vllm serve`, same model, in turns in one run.

    python benchmarks/startup.py --rounds 3 --json startup.json

Both serve the tiny policy in fp32 on the CPU with a small KV cache, and are done when a stock chat request has
its first answer. Ours is timed twice: from deploying on a Ray cluster that is up, and with the cluster's own
start. `vllm serve` runs as its documentation says for this model and these limits (`--enforce-eager`, no
compilation); it is called by its module, since the CPU distribution's name breaks the `vllm` command.
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
from pathlib import Path

from jobs.deploy import deploy
from jobs.local import LocalCluster, free_port, stop_tree
from sdpo_ray.config import load_run
from serve.placement import CPU_ENV

REPOSITORY = Path(__file__).parent.parent
RECIPE = REPOSITORY / "jobs" / "recipes" / "laptop.toml"
TIMEOUT_S = 300


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


def ours(log: Path) -> tuple[float, float]:
    """Seconds from deploying, and seconds from starting Ray."""
    with tempfile.TemporaryDirectory() as root:
        overrides = [f"root={root}", f"serve.port={free_port()}"]
        run = load_run(RECIPE, overrides)
        started = time.monotonic()
        with LocalCluster(num_cpus=4, log=log) as cluster:
            began = time.monotonic()
            deploy(cluster.dashboard, run, RECIPE, overrides, only=("policy",), wait=False)
            seconds = first_answer(run.serve.url, began)
            return seconds, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="starts of each, in turns")
    parser.add_argument("--json", type=Path, help="also write the medians and the ratio here")
    arguments = parser.parse_args()
    log = Path(tempfile.mkstemp(suffix=".log")[1])
    rounds = []
    for number in range(arguments.rounds):
        bare = vllm_serve(log)
        deployed, with_ray = ours(log)
        rounds.append((bare, deployed, with_ray))
        print(
            f"round {number + 1}: vllm serve {bare:.1f} s, ours {deployed:.1f} s, with Ray's start {with_ray:.1f} s",
            flush=True,
        )
    bare, deployed, with_ray = (statistics.median(column) for column in zip(*rounds, strict=True))
    result = {"vllm_serve_s": bare, "ours_s": deployed, "ours_with_ray_s": with_ray, "ratio": deployed / bare}
    print("medians: " + ", ".join(f"{name} {value:.2f}" for name, value in result.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
