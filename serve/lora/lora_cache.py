"""The adapters in one engine, each under a name that never means other weights.

vLLM pages them between the engine and memory. What is in memory is decided here, for vLLM would otherwise read a file
in the middle of a step: nothing is asked of it that was not read, checked and verified before, and nobody's adapter
goes while it answers.
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
    """Every adapter in memory is answering somebody."""


class LoRAEngine(Protocol):
    """What the cache needs of an engine. `serve.engine.recording_engine.RecordingLLM` is one."""

    async def add_adapter(self, adapter: LoadedAdapter) -> None: ...
    async def remove_adapter(self, adapter: LoadedAdapter) -> None: ...
    def adapters_in_use(self) -> Collection[str]:
        """Names of those that unfinished requests were given."""

    async def logprobs(self, token_ids: tuple[int, ...], adapter: LoadedAdapter | None = None) -> tuple[float, ...]: ...


class AdapterSelector(Protocol):
    """Says whose adapter answers a request, at the moment it enters the engine."""

    def select(self, chat: ChatContext | None) -> AbstractAsyncContextManager[LoadedAdapter | None]:
        """The adapter, or None for the engine's own weights. It stays while the block lasts."""


class LoRACache:
    """Which adapters are in the engine. `base` is what `checkpoint_io.headers` says of the weights beneath them, `slots` is
    how many a batch may mix."""

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
        self._held: Counter[str] = Counter()
        self._last = 0
        self._changing = asyncio.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    async def get(
        self, name: str, path: str, fingerprint: Fingerprint, digests: Sequence[FileDigest] = ()
    ) -> LoadedAdapter:
        """The adapter, read and verified where it is not in memory.

        Raises SwapError saying what is wrong with it; Crowded where there is no room for it now. Whoever gets it holds
        it before waiting for anything else.
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
        """It stays until it was let go as often as it was held, and while a request in the engine has it."""
        self._held[adapter.name] += 1

    def unpin(self, adapter: LoadedAdapter) -> None:
        self._held[adapter.name] -= 1
        if not self._held[adapter.name]:
            del self._held[adapter.name]

    @contextmanager
    def pinned(self, adapter: LoadedAdapter) -> Iterator[None]:
        """Hold it while the block lasts."""
        self.pin(adapter)
        try:
            yield
        finally:
            self.unpin(adapter)

    async def remove(self, adapter: LoadedAdapter) -> bool:
        """Take it out of the engine; False where somebody still holds it, or is answered by it."""
        async with self._changing:
            if self._loaded.get(adapter.name) != adapter:
                return True
            if self._busy(adapter.name):
                return False
            await self._engine.remove_adapter(self._loaded.pop(adapter.name))
            return True

    def clear(self) -> None:
        """The weights beneath were replaced, and vLLM has dropped every adapter. Call it with the gate shut."""
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
        self._last += 1
        adapter = LoadedAdapter(name=name, number=self._last, path=path)
        try:
            await self._engine.add_adapter(adapter)
            said = await self._engine.logprobs(fingerprint.token_ids, adapter)
            require_match(fingerprint, said, tolerance=self._tolerance)
        except BaseException as error:
            await asyncio.shield(self._engine.remove_adapter(adapter))
            if isinstance(error, Exception):
                raise SwapError(f"{name} was loaded and taken out: {error}") from error
            raise
        logger.info("adapter %s is in the engine", name)
        return adapter

    def _busy(self, name: str) -> bool:
        return name in self._held or name in self._engine.adapters_in_use()
