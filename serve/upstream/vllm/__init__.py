"""Private parts of vLLM that serving subclasses, replaces or calls: read `PRIVATE_USES` before the pin moves.

Importing this package imports nothing of vLLM. Its modules do.
"""

from functools import partial

from sdpo_ray.upstream import PrivateUse

_use = partial(PrivateUse, distribution="vllm", version="0.32.0")
_STEERING = "AsyncLLM has a method for it"
_RECORDING = "AsyncLLM takes a callback for a request's outputs"

PRIVATE_USES = (
    # async_llm.py and the subclasses of it in serve/engine
    _use(
        symbol="vllm.v1.engine.async_llm.AsyncLLM.add_request",
        reason="overridden: requests pass a gate, and get their adapter, on their way into the engine",
        until=_RECORDING,
    ),
    _use(
        symbol="vllm.v1.engine.async_llm.AsyncLLM.generate",
        reason="overridden: outputs are recorded as vLLM's handlers consume them",
        until=_RECORDING,
    ),
    _use(
        symbol="vllm.v1.engine.core_client.AsyncMPClient.is_sleeping_async",
        reason="a round trip through the loop, to tell an engine that hangs: `check_health` only knows dead ones",
        until="`check_health` asks the engine's loop",
    ),
    _use(
        symbol="vllm.v1.engine.core_client.AsyncMPClient.pause_scheduler_async",
        reason="`pause_generation` sleeps 20 ms after it, which every held request would wait",
        until="`pause_generation` does not sleep",
    ),
    _use(
        symbol="vllm.v1.engine.core_client.BackgroundResources.engine_manager",
        reason="the engine's processes, to kill one that hangs",
        until=_STEERING,
    ),
    _use(
        symbol="vllm.v1.engine.utils.CoreEngineProcManager.processes",
        reason="the engine's processes, to kill one that hangs",
        until=_STEERING,
    ),
    _use(
        symbol="vllm.v1.engine.output_processor.OutputProcessor.has_unfinished_requests",
        reason="whether the engine is drained, polled every 2 ms while requests are held",
        until=_STEERING,
    ),
    _use(
        symbol="vllm.v1.engine.output_processor.OutputProcessor.request_states",
        reason="which adapters unfinished requests use: an adapter in use must not be removed",
        until=_STEERING,
    ),
    _use(
        symbol="vllm.v1.engine.output_processor.RequestOutputCollector.output",
        reason="what the engine had generated of an aborted request and had not yet handed on",
        until=_RECORDING,
    ),
    _use(
        symbol="vllm.renderers.base.BaseRenderer.render_cmpl",
        reason="token ids as the engine takes them, for the log-probs of a known text",
        until="AsyncLLM scores token ids",
    ),
    _use(
        symbol="vllm.renderers.base.BaseRenderer.clear_mm_cache_async",
        reason="what `pause_generation` clears before it pauses",
        until="`pause_generation` does not sleep",
    ),
    # openai_app.py, tool_calls.py
    _use(
        symbol="vllm.entrypoints.launchers.app.build_app",
        reason="vLLM's whole OpenAI API inside a Ray Serve deployment",
        until="vLLM documents how its app is embedded",
    ),
    _use(
        symbol="vllm.entrypoints.launchers.api_server.app_state.init_app_state",
        reason="vLLM's whole OpenAI API inside a Ray Serve deployment",
        until="vLLM documents how its app is embedded",
    ),
    _use(
        symbol="vllm.entrypoints.openai.chat_completion.api_router.create_chat_completion",
        reason="called without FastAPI and without its decorator: a tenth of the server's CPU for a short response",
        until="that share is below 3 %",
    ),
    _use(
        symbol="vllm.parser.ParserManager",
        reason="recorded tool calls are those that the client is shown, parsed by the same parser",
        until="vLLM's outputs carry the calls",
    ),
    _use(
        symbol="vllm.entrypoints.serve.utils.tool_calls_utils.maybe_filter_parallel_tool_calls",
        reason="recorded tool calls are those that the client is shown",
        until="vLLM's outputs carry the calls",
    ),
    # log_privacy.py
    _use(
        symbol="vllm.logger._configure_vllm_root_logger",
        reason="calls `dictConfig`, which closes Ray Serve's log handlers: they are mended afterwards",
        until="vLLM configures its own loggers alone",
    ),
    _use(
        symbol="vllm.v1.engine.input_processor",
        reason="name of a logger, one of nine, whose warnings repeat what a request says",
        until="vLLM has an option that keeps request text out of its logs",
    ),
    # forkserver.py
    _use(
        symbol="vllm.v1.engine.utils.get_mp_context",
        reason="replaced: vLLM forces `spawn` in a Ray actor, where a fork server saves 7 s of a replica's start",
        until="vLLM honours VLLM_WORKER_MULTIPROC_METHOD=forkserver there",
    ),
    # logprobs.py, sampler.py
    _use(
        symbol="vllm.v1.engine.output_processor.LogprobsProcessor",
        reason="replaced: log-probs that only the recorder wants stay floats and are not turned into text",
        until="vLLM returns log-probs without text (`FlatLogprobs` for sampled tokens)",
    ),
    _use(
        symbol="vllm.v1.engine.logprobs.LogprobsProcessor._update_sample_logprobs",
        reason="overridden for the same",
        until="vLLM returns log-probs without text (`FlatLogprobs` for sampled tokens)",
    ),
    _use(
        symbol="vllm.v1.sample.sampler.Sampler.gather_logprobs",
        reason="overridden: no ranks, which no OpenAI response shows",
        until="vLLM ranks on request",
    ),
    _use(
        symbol="vllm.v1.outputs.LogprobsLists.slice_request",
        reason="overridden: a token's log-prob is sent as bytes that are made once a step, not as three arrays",
        until="vLLM sends a step's log-probs as one array",
    ),
    # cpu_norms.py, cpu_lm_head.py, cpu_lora.py
    _use(
        symbol="vllm.model_executor.layers.layernorm.RMSNorm.forward_native",
        reason="replaced on the CPU by vLLM's own kernels, which its wheel has and does not use",
        until="vLLM uses them",
    ),
    _use(
        symbol="vllm._custom_ops.fused_add_rms_norm",
        reason="the kernels are called as `torch.ops._C.*`, as here",
        until="vLLM uses them",
    ),
    _use(
        symbol="vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm",
        reason="a tied output head's packed copy is renewed after weights are reloaded on the CPU",
        until="`reload_weights` renews it",
    ),
    _use(
        symbol="vllm.v1.worker.gpu_worker.Worker.reload_weights",
        reason="puts staged tensors into the model, in place, from inside the worker",
        until="AsyncLLM takes tensors",
    ),
    _use(
        symbol="vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU.add_lora_linear",
        reason="overridden: rows without an adapter get the last slot's on the CPU",
        until="vLLM's CPU kernels skip index -1",
    ),
    _use(
        symbol="vllm.lora.worker_manager.WorkerLoRAManager._adapter_manager",
        reason="leads to the products that are replaced",
        until="vLLM's CPU kernels skip index -1",
    ),
)
