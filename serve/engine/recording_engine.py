"""vLLM's async engine with two additions: requests pass a gate, and responses are recorded.

The last output of a recorded response is yielded while its turn is being written to disk. `serve.api.response` waits
for the write; what vLLM makes of the output meanwhile costs no extra time. A response whose client disconnected, or
whose time is over, is aborted in the engine and recorded as far as it came.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import AsyncExitStack
from contextvars import ContextVar
from functools import partial
from time import time_ns
from typing import Any

from vllm import SamplingParams
from vllm.outputs import RequestOutput
from vllm.v1.engine.exceptions import EngineDeadError

from sdpo_ray.capture.engine_response import EngineResponse
from sdpo_ray.capture.recorder import Recorder
from sdpo_ray.errors import DataError
from serve.engine.request_recorder import RequestRecorder
from serve.engine.swappable_engine import FINGERPRINT_PREFIX, SwappableLLM, lora_request
from serve.lora.lora_cache import AdapterSelector
from serve.request_context import CHAT_CONTEXT
from serve.upstream.vllm.logprobs import RECORDED_ALONE
from serve.upstream.vllm.tool_calls import ToolCallReader
from serve.weights.swapper import RequestGate

logger = logging.getLogger(__name__)
_ADDING: ContextVar[RequestRecorder | None] = ContextVar("adding", default=None)
"""Recording of the request that is being added: set before `generate` begins, read by `add_request`."""


class RecordingLLM(SwappableLLM):
    """AsyncLLM whose requests pass `gate` and whose responses `recorder` stores."""

    gate: RequestGate
    died: asyncio.Event
    """Set when a request fails because the engine is dead."""
    recorder: Recorder | None
    """None on the evaluation engine."""
    tool_calls: ToolCallReader
    adapters: AdapterSelector | None = None
    """Chooses each request's adapter; None where the loaded weights answer every request."""

    async def add_request(self, request_id: str, *args: Any, **kwargs: Any) -> Any:
        if request_id.startswith(FINGERPRINT_PREFIX):
            return await super().add_request(request_id, *args, **kwargs)
        recording = _ADDING.get()
        chat = recording.chat if recording is not None else None
        began_ns = time_ns()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.gate.enter(admitted=chat is not None and chat.admitted))
            if chat is not None:
                chat.context.add_span("gate", began_ns)
            if self.adapters is not None:
                adapter = await stack.enter_async_context(self.adapters.select(chat))
                kwargs["lora_request"] = lora_request(adapter)
            if chat is not None:
                chat.admitted = True
            queue = await super().add_request(request_id, *args, **kwargs)
        if recording is not None:
            recording.queue = queue
        return queue

    def generate(self, prompt: Any, sampling_params: SamplingParams, request_id: str, **kwargs: Any) -> Any:
        # The context variable is read at the call: vLLM runs the generator's body in another task.
        chat = CHAT_CONTEXT.get()
        outputs = super().generate(prompt, sampling_params, request_id, **kwargs)
        if chat is None:
            return outputs
        recorded_alone = chat.recorded and sampling_params.num_logprobs is None
        if recorded_alone:
            sampling_params.logprobs = 0
        use = chat.tool_use
        calls_of = None if use is None else partial(self.tool_calls.calls, use)
        return self._observed(RequestRecorder(chat, sampling_params, calls_of), outputs, recorded_alone)

    async def _observed(
        self, recording: RequestRecorder, outputs: AsyncGenerator[RequestOutput, None], recorded_alone: bool
    ) -> AsyncGenerator[RequestOutput, None]:
        chat = recording.chat
        began_ns = time_ns()
        _ADDING.set(recording)
        RECORDED_ALONE.set(recorded_alone)
        try:
            async for output in outputs:
                if chat.context.policy_version is None:
                    chat.context.policy_version = self.policy_version
                recording.add(output)
                if recording.broke_format(output):
                    await outputs.aclose()
                    if chat.recorded and self.recorder is not None:
                        self.recorder.counters.add("not_recorded.format_not_kept")
                    # vLLM calls it an internal error; a ValueError is the client's.
                    raise DataError("the answer cannot keep to the format that was asked for")
                if output.finished:
                    chat.context.add_span("engine", began_ns)
                if output.finished and chat.recorded:
                    chat.storing = self._record(recording)
                yield output
        except EngineDeadError:
            self.died.set()
            raise
        except (asyncio.CancelledError, GeneratorExit):
            # The engine drops the request first, and its collector then holds what was not yet yielded.
            await outputs.aclose()
            recording.abort()
            if chat.recorded and not recording.taken:
                self._record_aborted(recording)
            raise

    def _record(self, recording: RequestRecorder) -> Coroutine[Any, Any, bool] | None:
        """Store the turns of a finished request, as `Recorder.record` does; None where there are none."""
        responses, request = self._responses(recording), recording.chat.request
        if not responses or request is None or self.recorder is None:
            return None
        return self.recorder.record(request, *responses)

    def _record_aborted(self, recording: RequestRecorder) -> None:
        """Store the turns of an aborted request in the background: no response waits for them."""
        responses, request = self._responses(recording), recording.chat.request
        if responses is None or request is None or self.recorder is None:
            return
        if responses:
            self.recorder.record_later(request, *responses)
        else:
            self.recorder.counters.add("not_recorded.abort_without_output")

    def _responses(self, recording: RequestRecorder) -> list[EngineResponse] | None:
        """Return what is to be recorded; None, and counted, where vLLM's tool parser fails on it."""
        recording.taken = True
        try:
            return recording.responses()
        except DataError as error:
            logger.warning("not recorded: %s", error)
            if self.recorder is not None:
                self.recorder.counters.add("not_recorded.tool_parser")
            return None
