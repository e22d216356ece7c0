"""vLLM's async engine with what a weight swap and the LoRA cache need of it."""

import asyncio
from collections.abc import Callable, Sequence
from uuid import uuid4

from vllm.lora.request import LoRARequest

from sdpo_ray.records import FileDigest
from serve.request_context import LoadedAdapter
from serve.upstream.vllm.async_llm import SteerableLLM
from serve.weights.checkpoint_io import within

FINGERPRINT_PREFIX = "fingerprint-"
"""Begins the ids of requests that verify weights: they pass the gate while it is held, and are not recorded."""
_STAGE_POLL_S = 0.01


class SwappableLLM(SteerableLLM):
    """Engine of `serve.weights.swapper` and `serve.lora.lora_cache`."""

    on_load: Callable[[], None] | None = None
    """Called when other weights are in place, before a request meets them."""
    policy_version: int
    """Version of the loaded weights."""

    async def prepare_swaps(self) -> None:
        """Prepare the workers (`serve.engine.worker_extension`). Call it once, before anything below."""
        await self.collective_rpc("prepare_swaps")

    async def stage(self, path: str, digests: Sequence[FileDigest]) -> None:
        """Read the weights at `path` in every worker, while the engine goes on generating."""
        expected = [(each.name, each.sha256) for each in within(digests)]
        await self.collective_rpc("stage_weights", args=(path, expected))
        while not all(await self.collective_rpc("weights_staged")):
            await asyncio.sleep(_STAGE_POLL_S)

    async def load(self, policy_version: int) -> None:
        """Put the staged weights into the drained engine, and clear the prefix cache, which is of the old ones."""
        await self.pause_and_clear_caches()
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
        """Let the engine read an adapter. Raises what vLLM raises for a bad one."""
        await self.add_lora(lora_request(adapter))

    async def remove_adapter(self, adapter: LoadedAdapter) -> None:
        await self.remove_lora(adapter.number)

    def adapters_in_use(self) -> set[str]:
        """Return names of the adapters that unfinished requests use."""
        return self.loras_in_use()

    async def logprobs(self, token_ids: tuple[int, ...], adapter: LoadedAdapter | None = None) -> tuple[float, ...]:
        """Return log p(token_ids[i + 1] | token_ids[:i + 1]) of the loaded weights and the adapter, past the gate."""
        return await self.prompt_logprobs(token_ids, lora_request(adapter), request_id=FINGERPRINT_PREFIX + uuid4().hex)


def lora_request(adapter: LoadedAdapter | None) -> LoRARequest | None:
    """Return vLLM's request for the adapter; None for the loaded weights alone."""
    if adapter is None:
        return None
    return LoRARequest(lora_name=adapter.name, lora_int_id=adapter.number, lora_path=adapter.path)
