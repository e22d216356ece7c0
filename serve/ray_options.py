"""How many replicas there are and what each takes: `[serve]` of a run file in Ray Serve's words.

An engine that is split over GPUs has them all in one actor, and vLLM's own workers beside it: Ray gives an actor GPUs
of one node only, so the parts of an engine always share a node, and no placement group is needed to say so.
"""

from typing import Any

from sdpo_ray.config import ServeConfig

ENGINE_ENV = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # A call that must be made is a JSON schema to the engine like any other: structural tags are xgrammar's own.
    "VLLM_ENFORCE_STRICT_TOOL_CALLING": "0",
}
CPU_ENV = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def replicas(serve: ServeConfig, *, users: bool) -> dict[str, Any]:
    """Options of the deployment for its number of replicas. Only users' replicas are ever more than one."""
    return serve.replicas if users else {"num_replicas": 1}


def actor(serve: ServeConfig) -> dict[str, Any]:
    """`ray_actor_options` of one replica: what it takes, and the environment that its engine needs."""
    environment = ENGINE_ENV if serve.num_gpus else ENGINE_ENV | CPU_ENV
    return {
        "num_cpus": serve.num_cpus,
        "num_gpus": serve.num_gpus,
        "resources": serve.resources,
        "runtime_env": {"env_vars": environment},
    }


def executor(serve: ServeConfig) -> str:
    """vLLM's executor: the worker within the engine's process, or a process for each GPU of a split engine."""
    return "mp" if serve.tensor_parallel > 1 else "uni"
