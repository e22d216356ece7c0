"""Serves releases as LoRA adapters over the run's base: new requests use the new one, running ones keep theirs."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sdpo_ray.errors import DataError, SwapError
from sdpo_ray.io.adapter_config import read_adapter_config
from sdpo_ray.records import Release
from serve.lora.lora_cache import LoRACache, LoRAEngine
from serve.request_context import ChatContext, LoadedAdapter
from serve.weights.checkpoint_io import within
from serve.weights.swapper import TOLERANCE, StallPhases, require_match

logger = logging.getLogger(__name__)
_RETIRE_POLL_S = 0.5


class LoRASwapper:
    """`WeightSwapper` and `AdapterSelector` of releases. No request waits for a swap.

    `base` is the directory of the weights in the engine; a release without an adapter is those weights.
    """

    stall = StallPhases()
    broken = False

    def __init__(self, engine: LoRAEngine, cache: LoRACache, serving: Release, *, base: Path, dtype: str) -> None:
        self._engine = engine
        self._cache = cache
        self._base = base
        self._tolerance = TOLERANCE[dtype]
        self._adapter: LoadedAdapter | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self.serving = serving

    async def to(self, release: Release) -> None:
        """Serve `release`. Raises SwapError, with the old release still serving, when it fails verification."""
        before = self._adapter
        adapter = await self._load(release)
        if adapter is not None:
            self._cache.pin(adapter)
        self.serving, self._adapter = release, adapter
        logger.info("serving v%d; no request waited", release.policy_version)
        if before is not None:
            self._cache.unpin(before)
            retiring = asyncio.create_task(self._retire(before))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)

    async def verify(self, release: Release) -> None:
        """Raise SwapError unless the engine's own weights reproduce the release's fingerprint."""
        logprobs = await self._engine.logprobs(release.fingerprint.token_ids)
        require_match(release.fingerprint, logprobs, tolerance=self._tolerance)

    @asynccontextmanager
    async def select(self, chat: ChatContext | None) -> AsyncIterator[LoadedAdapter | None]:
        """Yield the adapter for a request that enters now, kept until the engine has it."""
        adapter, version = self._adapter, self.serving.policy_version
        if chat is not None:
            if chat.admitted:
                # The rest of a request goes on with the policy of its first part.
                adapter = chat.adapter
            else:
                chat.adapter, chat.release_version = adapter, version
                chat.context.policy_version = version
        if adapter is None:
            yield None
            return
        with self._cache.pinned(adapter):
            yield adapter

    async def _load(self, release: Release) -> LoadedAdapter | None:
        if not release.adapter:
            if Path(release.path) != self._base:
                raise SwapError(f"no adapter over {self._base}, and serve.swap is 'adapter'")
            await self.verify(release)
            return None
        folder = Path(release.adapter)
        self._require_base(folder)
        digests = within(release.digests, folder.name)
        name = f"policy@v{release.policy_version}"
        return await self._cache.get(name, release.adapter, release.fingerprint, digests)

    def _require_base(self, folder: Path) -> None:
        try:
            beneath = read_adapter_config(folder).base_model_name_or_path
        except (OSError, DataError) as error:
            raise SwapError(f"its adapter cannot be read: {error}") from error
        if Path(beneath).resolve() != self._base.resolve():
            raise SwapError(f"its adapter belongs over {beneath}, not over the run's base {self._base}")

    async def _retire(self, adapter: LoadedAdapter) -> None:
        """Take an adapter out of the engine once no request uses it."""
        while not await self._cache.remove(adapter):
            await asyncio.sleep(_RETIRE_POLL_S)
