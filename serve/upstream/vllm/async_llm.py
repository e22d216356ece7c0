"""vLLM's `AsyncLLM` with what its internals offer and its methods do not.

`serve.engine` builds on it: it swaps weights and adapters, records outputs and ends with a dead engine.
"""

import asyncio
from typing import Any

from vllm import SamplingParams
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

_DRAIN_POLL_S = 0.002


class SteerableLLM(AsyncLLM):  # type: ignore[misc]
    """AsyncLLM that can be drained, paused without delay, probed, killed and asked for a prompt's log-probs."""

    async def ping(self) -> None:
        """Return when the engine's loop comes round, between two steps. Raises EngineDeadError."""
        await self.engine_core.is_sleeping_async()

    def kill(self) -> None:
        """Kill the engine's processes. An engine that hangs reacts to nothing less."""
        for process in self.engine_core.resources.engine_manager.processes:
            process.kill()

    async def drained(self) -> None:
        """Return when the engine has finished every request; call it while no request can enter."""
        while self.output_processor.has_unfinished_requests():
            await asyncio.sleep(_DRAIN_POLL_S)

    async def pause_and_clear_caches(self) -> None:
        """Do what `pause_generation` does, without the 20 ms that it then sleeps."""
        await self.renderer.clear_mm_cache_async()
        await self.engine_core.pause_scheduler_async(mode="wait", clear_cache=True)

    def loras_in_use(self) -> set[str]:
        """Return names of the adapters that unfinished requests use."""
        return {state.lora_name for state in self.output_processor.request_states.values() if state.lora_name}

    async def prompt_logprobs(
        self, token_ids: tuple[int, ...], lora: LoRARequest | None, *, request_id: str
    ) -> tuple[float, ...]:
        """Return log p(token_ids[i + 1] | token_ids[:i + 1]), one fewer than `token_ids`."""
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0.0)
        prompt = TokensPrompt(prompt_token_ids=list(token_ids))
        (rendered,) = self.renderer.render_cmpl([prompt], self.renderer.default_cmpl_tok_params)
        final: Any = None
        async for output in super().generate(rendered, params, request_id, lora_request=lora):
            final = output
        positions = (final.prompt_logprobs if final is not None else None) or []
        return tuple(
            float(position[token].logprob)
            for position, token in zip(positions[1:], token_ids[1:], strict=True)
            if position is not None
        )
