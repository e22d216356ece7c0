"""Translates a run file into arguments of vLLM's engine and of its API server."""

import argparse
from pathlib import Path
from typing import Any

from sdpo_ray.config import Run
from sdpo_ray.errors import ConfigError
from serve.lora.validation import engine_options
from serve.ray_options import executor


def engine_arguments(run: Run, model: str) -> Any:
    """Return vLLM's `AsyncEngineArgs` for the policy at `model`."""
    from vllm.config import StructuredOutputsConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    return AsyncEngineArgs(
        model=model,
        served_model_name=[run.serve.served_name],
        dtype=run.policy.dtype,
        max_model_len=run.policy.max_model_len,
        enforce_eager=not run.serve.num_gpus,
        tensor_parallel_size=run.serve.tensor_parallel,
        distributed_executor_backend=executor(run.serve),
        kv_cache_memory_bytes=run.serve.kv_cache_mib << 20,
        max_num_seqs=run.serve.max_num_seqs,
        max_num_queued_reqs=run.serve.max_queued,
        worker_extension_cls="serve.engine.worker_extension.SwapExtension",
        # Log-probs after temperature and top-p: those of the distribution that was sampled from.
        logprobs_mode="processed_logprobs",
        # By default vLLM keeps the backend that fits the first constrained request, most often xgrammar, which a
        # pattern of 17 characters blocks for hours. llguidance has limits: see `serve.api.schema_limits`.
        structured_outputs_config=StructuredOutputsConfig(backend="guidance"),
        otlp_traces_endpoint=run.serve.otlp_endpoint or None,
        **engine_options(run, Path(model)),
    )


def api_arguments(run: Run, engine: Any) -> argparse.Namespace:
    """Return the arguments of vLLM's API server around that engine. Raises ConfigError for an unknown tool parser."""
    from vllm.entrypoints.launchers.cli_args import FrontendArgs
    from vllm.tool_parsers import ToolParserManager

    parser = run.serve.tool_parser
    known = ToolParserManager.list_registered()
    if parser not in ("none", *known):
        raise ConfigError(f"serve.tool_parser: vLLM has no {parser!r}; it has none, {', '.join(sorted(known))}")
    calls = {} if parser == "none" else {"enable_auto_tool_choice": True, "tool_call_parser": parser}
    return argparse.Namespace(**(vars(FrontendArgs(**calls)) | vars(engine)))
