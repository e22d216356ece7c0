"""Starts the engine's process from a fork server that imports vLLM while the replica does (CPU only).

vLLM spawns its engine core in a Ray actor, and on the CPU always: the child imports everything again, after the parent
is done. A fork server is a single-threaded process of its own (no Ray, no gRPC), imports at the same time on another
core, and forks the engine core at once. vLLM's own API server does the same on request
(`vllm/entrypoints/launchers/api_server/entry.py`). From deploying to the first response it takes 20 to 22 s instead of
27 to 28.
"""

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

MODULES = [
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.qwen3",
    "serve.engine.worker_extension",
]


def start() -> BaseContext:
    """Start importing in the background. Call it before this process imports vLLM, with the final environment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(MODULES)
    forkserver.ensure_running()
    return context


def use(context: BaseContext) -> None:
    """Let vLLM start its engine core with `context`."""
    import vllm.v1.engine.utils

    vllm.v1.engine.utils.get_mp_context = lambda: context
