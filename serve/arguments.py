"""What one run file asks of vLLM: the engine's arguments, and those of its API server."""

import argparse
from typing import Any

from sdpo_ray.config import Run


def engine_arguments(run: Run, model: str) -> Any:
    """vLLM's `AsyncEngineArgs` for the policy at `model`."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    return AsyncEngineArgs(
        model=model,
        served_model_name=[run.serve.served_name],
        dtype=run.policy.dtype,
        max_model_len=run.policy.max_model_len,
        enforce_eager=not run.serve.num_gpus,
        distributed_executor_backend="uni",
        kv_cache_memory_bytes=run.serve.kv_cache_mib << 20,
        max_num_seqs=run.serve.max_num_seqs,
        max_num_queued_reqs=run.serve.max_queued,
        worker_extension_cls="serve.weights.SwapExtension",
        # Log-probs after temperature and top-p are those of the policy that sampled.
        logprobs_mode="processed_logprobs",
    )


def api_arguments(run: Run, engine: Any) -> argparse.Namespace:
    """The arguments of vLLM's own API server around that engine."""
    from vllm.entrypoints.launchers.cli_args import FrontendArgs

    return argparse.Namespace(**(vars(FrontendArgs()) | vars(engine)))
