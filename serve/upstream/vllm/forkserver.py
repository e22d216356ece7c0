"""A head start for the engine's process: a fork server imports vLLM while the replica does.

vLLM spawns its engine core, and on the CPU always so: the child imports everything again, after the parent is
done. A fork server is a single-threaded process of its own (no Ray, no gRPC), imports at the same time on
another core, and forks the engine core in no time. vLLM's own API server does the same on request
(`vllm/entrypoints/launchers/api_server/entry.py`).
"""

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

MODULES = [
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.qwen3",
    "serve.weights.worker_extension",
]


def start() -> BaseContext:
    """Start importing in the background. Call it before this process imports vLLM, with the final environment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    forkserver.ensure_running()
    return context


def use(context: BaseContext) -> None:
    """Let vLLM start its engine core from the fork server."""
    import vllm.v1.engine.utils

    vllm.v1.engine.utils.get_mp_context = lambda: context
