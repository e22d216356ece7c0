"""Translates `[serve]` of a run file into Ray Serve options: the number of replicas, and the resources of each.

An engine that is split over GPUs has them all in one actor, with vLLM's own workers as its children: Ray gives an actor
GPUs of one node only, so the parts of an engine always share a node without a placement group.
"""

from typing import Any

from sdpo_ray.config import ServeConfig

ENGINE_ENV = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # A forced tool call is then a JSON schema like any other; structural tags work with xgrammar alone.
    "VLLM_ENFORCE_STRICT_TOOL_CALLING": "0",
}
CPU_ENV = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def replicas(serve: ServeConfig, *, users: bool) -> dict[str, Any]:
    """Return the deployment's options for its number of replicas: one, except for users."""
    return serve.replicas if users else {"num_replicas": 1}


def actor(serve: ServeConfig) -> dict[str, Any]:
    """Return `ray_actor_options` of one replica: its resources, and its engine's environment."""
    environment = ENGINE_ENV if serve.num_gpus else ENGINE_ENV | CPU_ENV
    return {
        "num_cpus": serve.num_cpus,
        "num_gpus": serve.num_gpus,
        "resources": serve.resources,
        "runtime_env": {"env_vars": environment},
    }


def executor(serve: ServeConfig) -> str:
    """Return vLLM's executor: one worker inside the engine's process, or a process a GPU for a split engine."""
    return "mp" if serve.tensor_parallel > 1 else "uni"
