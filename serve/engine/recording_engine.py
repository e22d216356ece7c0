"""vLLM's async engine, with two additions: requests pass a gate, and answers are recorded.

The last output of a recorded answer is handed on with its turn on the way to the disk. `serve.api.response` waits for
it; what vLLM makes of the output meanwhile costs no time. An answer that nobody waits for any more, because the client
hung up or the time was over, is taken out of the engine and recorded as far as it came.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from contextvars import ContextVar
from functools import partial
from time import time_ns
from typing import Any
from uuid import uuid4

from vllm import SamplingParams
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from sdpo_ray.capture.recorder import EngineResponse, Recorder
from sdpo_ray.errors import DataError
from sdpo_ray.records import FileDigest
from serve.engine.logprobs import RECORDED_ALONE
from serve.engine.request_recorder import RequestRecorder
from serve.engine.tool_calls import ToolCallReader
from serve.lora.lora_cache import AdapterSelector
from serve.request_context import EXCHANGE, LoadedAdapter
from serve.weights.checkpoint_io import within
from serve.weights.swapper import RequestGate

logger = logging.getLogger(__name__)
_FINGERPRINT = "fingerprint-"
_DRAIN_POLL_S = 0.002
_STAGE_POLL_S = 0.01
_ADDING: ContextVar[RequestRecorder | None] = ContextVar("adding", default=None)
"""The answer whose request is on its way into the engine: set before `generate` begins, read by `add_request`."""


class RecordingLLM(AsyncLLM):  # type: ignore[misc]
    """AsyncLLM that `serve.weights.swapper` can steer and `capture.recorder` can read."""

    gate: RequestGate
    died: asyncio.Event
    """Set when a request is told that the engine is dead."""
    recorder: Recorder | None
    tool_calls: ToolCallReader
    adapters: AdapterSelector | None = None
    """Says which adapter answers a request; None where only the engine's own weights do."""
    on_load: Callable[[], None] | None = None
    """Called when other weights are in place, before any request meets them."""
    policy_version: int

    async def add_request(self, request_id: str, *args: Any, **kwargs: Any) -> Any:
        if request_id.startswith(_FINGERPRINT):
            return await super().add_request(request_id, *args, **kwargs)
        answering = _ADDING.get()
        exchange = answering.exchange if answering is not None else None
        began_ns = time_ns()
        async with AsyncExitStack() as entering:
            await entering.enter_async_context(self.gate.entering(begun=exchange is not None and exchange.admitted))
            if exchange is not None:
                exchange.visit.passed("gate", began_ns)
            if self.adapters is not None:
                adapter = await entering.enter_async_context(self.adapters.answering(exchange))
                kwargs["lora_request"] = _lora(adapter)
            if exchange is not None:
                exchange.admitted = True
            queue = await super().add_request(request_id, *args, **kwargs)
        if answering is not None:
            answering.queue = queue
        return queue

    def generate(self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any) -> Any:
        # The context is read at the call: vLLM runs the generator's body in another task.
        exchange = EXCHANGE.get()
        outputs = super().generate(prompt, sampling_params, request_id, **kwargs)
        if exchange is None:
            return outputs
        alone = exchange.recorded and sampling_params.num_logprobs is None
        if alone:
            sampling_params.logprobs = 0
        use = exchange.tool_use
        calls_of = None if use is None else partial(self.tool_calls.calls, use)
        return self._observed(RequestRecorder(exchange, sampling_params, calls_of), outputs, alone)

    async def _observed(
        self, answering: RequestRecorder, outputs: AsyncGenerator[RequestOutput, None], alone: bool
    ) -> AsyncGenerator[RequestOutput, None]:
        exchange = answering.exchange
        began_ns = time_ns()
        _ADDING.set(answering)
        RECORDED_ALONE.set(alone)
        try:
            async for output in outputs:
                if exchange.visit.policy_version is None:
                    exchange.visit.policy_version = self.policy_version
                answering.see(output)
                if answering.lost_its_format(output):
                    await outputs.aclose()
                    if exchange.recorded and self.recorder is not None:
                        self.recorder.counters.add("not_recorded.format_not_kept")
                    # vLLM calls it an internal error; a ValueError is the client's.
                    raise DataError("the answer cannot keep to the format that was asked for")
                if output.finished:
                    exchange.visit.passed("engine", began_ns)
                if output.finished and exchange.recorded:
                    exchange.storing = self._record(answering)
                yield output
        except EngineDeadError:
            self.died.set()
            raise
        except (asyncio.CancelledError, GeneratorExit):
            # The engine drops the request before anything else waits, and puts out what it still had of it.
            await outputs.aclose()
            answering.break_off()
            if exchange.recorded and not answering.settled:
                self._record_broken_off(answering)
            raise

    def _record(self, answering: RequestRecorder) -> Coroutine[Any, Any, bool] | None:
        """Store the turns of a request that has ended, as `Recorder.record` does; None where there are none."""
        answers, asked = self._answers(answering), answering.exchange.asked
        if not answers or asked is None or self.recorder is None:
            return None
        return self.recorder.record(asked, *answers)

    def _record_broken_off(self, answering: RequestRecorder) -> None:
        """Store the turns of a request that nobody waits for any more, in the background."""
        answers, asked = self._answers(answering), answering.exchange.asked
        if answers is None or asked is None or self.recorder is None:
            return
        if answers:
            self.recorder.record_later(asked, *answers)
        else:
            self.recorder.counters.add("not_recorded.abort_without_output")

    def _answers(self, answering: RequestRecorder) -> list[EngineResponse] | None:
        """What is to be recorded; None, and counted, where vLLM's tool parser cannot read it."""
        answering.settled = True
        try:
            return answering.answers()
        except DataError as error:
            logger.warning("not recorded: %s", error)
            if self.recorder is not None:
                self.recorder.counters.add("not_recorded.tool_parser")
            return None

    async def pulse(self) -> None:
        """Return when the engine's loop comes round, between two steps. Raises EngineDeadError."""
        await self.engine_core.is_sleeping_async()

    def kill(self) -> None:
        """End the engine's process. Nothing gentler reaches one that hangs."""
        for process in self.engine_core.resources.engine_manager.processes:
            process.kill()

    async def prepare_swaps(self) -> None:
        """Call it once, before anything below."""
        await self.collective_rpc("prepare_swaps")

    async def stage(self, path: str, digests: Sequence[FileDigest]) -> None:
        """Read the weights at `path` in every worker, while the model goes on."""
        expected = [(each.name, each.sha256) for each in within(digests)]
        await self.collective_rpc("stage_weights", args=(path, expected))
        while not all(await self.collective_rpc("weights_staged")):
            await asyncio.sleep(_STAGE_POLL_S)

    async def drained(self) -> None:
        """Return when the engine has finished every request; call it with the gate held."""
        while self.output_processor.has_unfinished_requests():
            await asyncio.sleep(_DRAIN_POLL_S)

    async def load(self, policy_version: int) -> None:
        """Put the staged weights into the drained engine, and clear the prefix cache, which holds the old ones."""
        # What `pause_generation` does, without the 20 ms that it then sleeps.
        await self.renderer.clear_mm_cache_async()
        await self.engine_core.pause_scheduler_async(mode="wait", clear_cache=True)
        await self.collective_rpc("load_staged")
        if self.on_load is not None:
            self.on_load()
        await self.label(policy_version)
        await self.resume_generation()

    async def label(self, policy_version: int) -> None:
        """Name the loaded weights, so that the engine marks every output token with them."""
        await self.update_weight_version(str(policy_version))
        self.policy_version = policy_version

    async def add_adapter(self, adapter: LoadedAdapter) -> None:
        """Let the engine read an adapter. Raises what vLLM has against it."""
        await self.add_lora(_lora(adapter))

    async def remove_adapter(self, adapter: LoadedAdapter) -> None:
        await self.remove_lora(adapter.number)

    def adapters_in_use(self) -> set[str]:
        """Names of the adapters that unfinished requests were given."""
        return {state.lora_name for state in self.output_processor.request_states.values() if state.lora_name}

    async def logprobs(self, token_ids: tuple[int, ...], adapter: LoadedAdapter | None = None) -> tuple[float, ...]:
        """log p(token_ids[i + 1] | token_ids[:i + 1]) under the loaded weights and the adapter, past the gate."""
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0.0)
        prompt = TokensPrompt(prompt_token_ids=list(token_ids))
        (rendered,) = self.renderer.render_cmpl([prompt], self.renderer.default_cmpl_tok_params)
        final = None
        request_id = _FINGERPRINT + uuid4().hex
        async for output in super().generate(rendered, params, request_id, lora_request=_lora(adapter)):
            final = output
        positions = (final.prompt_logprobs if final is not None else None) or []
        return tuple(
            float(position[token].logprob)
            for position, token in zip(positions[1:], token_ids[1:], strict=True)
            if position is not None
        )


def _lora(adapter: LoadedAdapter | None) -> LoRARequest | None:
    if adapter is None:
        return None
    return LoRARequest(lora_name=adapter.name, lora_int_id=adapter.number, lora_path=adapter.path)
