"""LoRA adapters in one engine's memory, each under a name that never means other weights.

vLLM pages them between its slots and memory. What is in memory is decided here, for vLLM would otherwise read a file in
the middle of a step: it is only asked for adapters that were read, checked and verified before, and no adapter is
removed while a request uses it.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from sdpo_ray.errors import SwapError
from sdpo_ray.records import FileDigest, Fingerprint
from serve.lora import validation
from serve.request_context import ChatContext, LoadedAdapter
from serve.weights import checkpoint_io
from serve.weights.swapper import TOLERANCE, require_match

logger = logging.getLogger(__name__)


class CacheFull(SwapError):
    """Every adapter in memory is in use."""


class LoRAEngine(Protocol):
    """What the cache needs of an engine. `serve.engine.swappable_engine.SwappableLLM` is one."""

    async def add_adapter(self, adapter: LoadedAdapter) -> None: ...
    async def remove_adapter(self, adapter: LoadedAdapter) -> None: ...
    def adapters_in_use(self) -> Collection[str]:
        """Return names of the adapters that unfinished requests use."""

    async def logprobs(self, token_ids: tuple[int, ...], adapter: LoadedAdapter | None = None) -> tuple[float, ...]: ...


class AdapterSelector(Protocol):
    """Chooses the adapter of a request, at the moment it enters the engine."""

    def select(self, chat: ChatContext | None) -> AbstractAsyncContextManager[LoadedAdapter | None]:
        """Yield the adapter, or None for the engine's own weights. It is not removed while the block lasts."""


class LoRACache:
    """The adapters in an engine, least recently used first out.

    `base` is what `checkpoint_io.headers` returns for the weights beneath them; a batch may mix `slots` adapters.
    """

    def __init__(
        self, engine: LoRAEngine, base: Mapping[str, checkpoint_io.TensorSpec], *, slots: int, max_rank: int, dtype: str
    ) -> None:
        self._engine = engine
        self._base = base
        self._capacity = slots + validation.CACHED
        self._max_rank = max_rank
        self._tolerance = TOLERANCE[dtype]
        self._loaded: dict[str, LoadedAdapter] = {}
        """Least recently used first."""
        self._pins: Counter[str] = Counter()
        self._last_number = 0
        self._changing = asyncio.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    async def get(
        self, name: str, path: str, fingerprint: Fingerprint, digests: Sequence[FileDigest] = ()
    ) -> LoadedAdapter:
        """Return the adapter, read and verified first where it is not in memory.

        Raises SwapError naming what is wrong with it; CacheFull where there is no room for it now. The caller pins it
        before it awaits anything else.
        """
        known = self._loaded.pop(name, None)
        if known is None:
            async with self._changing:
                known = self._loaded.pop(name, None) or await self._load(name, path, fingerprint, digests)
        self._loaded[name] = known
        if known.path != path:
            raise SwapError(f"{name} already means the weights at {known.path}")
        return known

    def pin(self, adapter: LoadedAdapter) -> None:
        """Keep it until it was unpinned as often as pinned, and no request in the engine uses it."""
        self._pins[adapter.name] += 1

    def unpin(self, adapter: LoadedAdapter) -> None:
        self._pins[adapter.name] -= 1
        if not self._pins[adapter.name]:
            del self._pins[adapter.name]

    @contextmanager
    def pinned(self, adapter: LoadedAdapter) -> Iterator[None]:
        """Pin it while the block lasts."""
        self.pin(adapter)
        try:
            yield
        finally:
            self.unpin(adapter)

    async def remove(self, adapter: LoadedAdapter) -> bool:
        """Take it out of the engine; return False, and keep it, where it is pinned or in use."""
        async with self._changing:
            if self._loaded.get(adapter.name) != adapter:
                return True
            if self._busy(adapter.name):
                return False
            await self._engine.remove_adapter(self._loaded.pop(adapter.name))
            return True

    def clear(self) -> None:
        """Follow the engine, which has dropped every adapter with the weights beneath. Call it with the gate shut."""
        self._loaded.clear()

    async def _load(
        self, name: str, path: str, fingerprint: Fingerprint, digests: Sequence[FileDigest]
    ) -> LoadedAdapter:
        try:
            await asyncio.to_thread(validation.check, Path(path), self._base, max_rank=self._max_rank, digests=digests)
        except Exception as error:
            raise SwapError(f"{name} cannot be read: {error}") from error
        while len(self._loaded) >= self._capacity:
            oldest = next((each for each in self._loaded if not self._busy(each)), None)
            if oldest is None:
                raise CacheFull(f"{name} finds no room: all {self._capacity} adapters in memory are in use")
            await self._engine.remove_adapter(self._loaded.pop(oldest))
        self._last_number += 1
        adapter = LoadedAdapter(name=name, number=self._last_number, path=path)
        try:
            await self._engine.add_adapter(adapter)
            logprobs = await self._engine.logprobs(fingerprint.token_ids, adapter)
            require_match(fingerprint, logprobs, tolerance=self._tolerance)
        except BaseException as error:
            await asyncio.shield(self._engine.remove_adapter(adapter))
            if isinstance(error, Exception):
                raise SwapError(f"{name} was loaded and taken out: {error}") from error
            raise
        logger.info("adapter %s is in the engine", name)
        return adapter

    def _busy(self, name: str) -> bool:
        return name in self._pins or name in self._engine.adapters_in_use()
