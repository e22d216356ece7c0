"""The servers that are compared, bare vLLM and ours, and the CPU time of their processes."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from startup import RECIPE, first_answer

from sdpo_ray.cluster.local_cluster import LocalCluster, free_port, stop_tree
from sdpo_ray.cluster.serve_deploy import deploy
from sdpo_ray.config import Run, load_run
from serve.ray_options import CPU_ENV, ENGINE_ENV

TINY = load_run(RECIPE).base


@dataclass(frozen=True, slots=True)
class Server:
    """One server that answers at `url`; `pid` is the root of its processes."""

    url: str
    pid: int

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, by part: `engine`, `server` (HTTP and what belongs to a request), `haproxy`, `rest`."""
        used: dict[str, float] = {}
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = process.cpu_times()
                part = self._part(process)
                used[part] = used.get(part, 0.0) + times.user + times.system
        return used

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Suspend all processes of the server, so that its idle work costs the others nothing."""
        self._each(psutil.Process.suspend)
        try:
            yield
        finally:
            self._each(psutil.Process.resume)

    def _each(self, do: Callable[[psutil.Process], None]) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                do(process)

    def _processes(self) -> list[psutil.Process]:
        root = psutil.Process(self.pid)
        return [root, *root.children(recursive=True)]

    def replica_url(self) -> str:
        """The address of the replica's HTTP server, behind HAProxy. Raises LookupError where no replica listens."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if self._part(process) == "server":
                    listening = [c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
                    return f"http://127.0.0.1:{next(port for port in listening if 20_000 <= port < 32_000)}"
        raise LookupError("no replica listens")

    def _part(self, process: psutil.Process) -> str:
        words = " ".join(process.cmdline())
        if "EngineCore" in words or "VLLM::Worker" in words or "multiprocessing.spawn" in words:
            return "engine"
        if process.pid == self.pid and "api_server" in words:
            return "server"
        if "ServeReplica" in words:
            return "server"
        return "haproxy" if "haproxy" in words.split(" ")[0] else "rest"


def make_policy(path: Path) -> Path:
    """A Qwen3-shaped policy of 51 M random parameters, with the tiny policy's tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(str(TINY))
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    Qwen3ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@contextlib.contextmanager
def bare(model: Path, log: Path, *, tuned: bool) -> Iterator[Server]:
    """`vllm serve` with our limits; `tuned` gives it our executor and environment too.

    By default vLLM on a CPU runs its worker in a separate process, and chooses threads and cores itself.
    """
    run = load_run(RECIPE)
    port = free_port()
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    argv += ["--host", "127.0.0.1", "--served-model-name", "policy", "--dtype", run.policy.dtype, "--enforce-eager"]
    argv += ["--max-model-len", str(run.policy.max_model_len), "--max-num-seqs", str(run.serve.max_num_seqs)]
    argv += ["--kv-cache-memory-bytes", str(run.serve.kv_cache_mib << 20)]
    argv += ["--enable-auto-tool-choice", "--tool-call-parser", run.serve.tool_parser]
    if tuned:
        argv += ["--distributed-executor-backend", "uni"]
        environment = os.environ | CPU_ENV | ENGINE_ENV
    else:
        # No downloads, no usage reports; and the compiler that vLLM's defaults need is not installed here.
        kept = {
            name: (CPU_ENV | ENGINE_ENV)[name]
            for name in ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "TORCH_COMPILE_DISABLE")
        }
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "VLLM_"))
        } | kept
    with log.open("ab") as file:
        process = subprocess.Popen(argv, env=environment, stdout=file, stderr=file)
    try:
        url = f"http://127.0.0.1:{port}"
        first_answer(url, time.monotonic())
        yield Server(url, process.pid)
    finally:
        stop_tree(process.pid)


@contextlib.contextmanager
def ours(model: Path, log: Path, root: Path) -> Iterator[Server]:
    """Ray, HAProxy and the users' application, recording to `root`."""
    overrides = [f"root={root}", f"serve.port={free_port()}", f"policy.base={model}"]
    run: Run = load_run(RECIPE, overrides)
    with LocalCluster(num_cpus=4, log=log) as cluster:
        deploy(cluster.dashboard, run, RECIPE, overrides, only=("policy",))
        first_answer(run.serve.url, time.monotonic())
        yield Server(run.serve.url, cluster.pid)
