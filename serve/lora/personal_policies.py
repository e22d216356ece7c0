"""Chooses the personal policy of a request; where none can answer, the shared policy does, and never an error.

A user's own policy comes before the tenant's. An owner's pointer is checked again after `RECHECK_S`, so most requests
cost no disk access.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sdpo_ray.capture.pairing_keys import owners
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.errors import DataError, SwapError
from sdpo_ray.io.files import read_json
from sdpo_ray.io.paths import Layout
from sdpo_ray.io.watched_file import FileStamp, file_stamp
from sdpo_ray.records import PersonalPolicy
from sdpo_ray.telemetry import Counters
from serve.lora.lora_cache import CacheFull, LoRACache
from serve.request_context import ChatContext, LoadedAdapter

logger = logging.getLogger(__name__)
RECHECK_S = 1.0
"""Seconds for which an owner's pointer is assumed unchanged."""
_MAX_OWNERS = 10_000
"""Owners whose pointers are kept in memory."""


@dataclass(slots=True)
class _Pointer:
    """Content of an owner's pointer file."""

    checked_at_s: float
    stamp: FileStamp | None = None
    """None where there is no file."""
    policy: PersonalPolicy | None = None
    reason: str = "absent"
    """Why there is no policy."""
    refused: bool = False
    """Whether the engine refused this policy. It is tried again once the pointer is written again."""


class PersonalPolicies:
    """`AdapterSelector` of personal policies. `served` returns the version of the shared policy beneath them."""

    def __init__(
        self,
        layout: Layout,
        pseudonyms: Callable[[], Pseudonyms],
        cache: LoRACache,
        served: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._layout = layout
        self._pseudonyms = pseudonyms
        self._cache = cache
        self._served = served
        self._clock = clock
        self._pointers: dict[str, _Pointer] = {}
        """Least recently used first."""
        self.counters = Counters.empty()
        """`served`, or why the shared policy answered: absent, unreadable, stale, refused, cache_full."""

    @asynccontextmanager
    async def select(self, chat: ChatContext | None) -> AsyncIterator[LoadedAdapter | None]:
        """Yield the adapter for a request that enters now, kept until the engine has it; None for the shared policy."""
        if chat is None:
            yield None
            return
        if not chat.admitted:
            chat.adapter = await self._choose(chat)
            chat.context.adapter = chat.adapter.name if chat.adapter is not None else ""
        if chat.adapter is None:
            yield None
            return
        with self._cache.pinned(chat.adapter):
            yield chat.adapter

    async def _choose(self, chat: ChatContext) -> LoadedAdapter | None:
        user = chat.request.user if chat.request is not None else ""
        reason = "absent"
        for owner in owners(self._pseudonyms(), tenant=chat.context.tenant, user=user):
            found = await self._load(owner)
            if isinstance(found, LoadedAdapter):
                self.counters.add("served")
                return found
            reason = found if reason == "absent" else reason
        self.counters.add(reason)
        return None

    async def _load(self, owner: str) -> LoadedAdapter | str:
        """Return the owner's adapter in the engine, or why there is none."""
        pointer = self._pointer(owner)
        policy = pointer.policy
        if policy is None:
            return pointer.reason
        if policy.base_version != self._served():
            return "stale"
        if pointer.refused:
            return "refused"
        try:
            return await self._cache.get(policy.name, policy.adapter, policy.fingerprint, policy.digests)
        except CacheFull:
            return "cache_full"
        except SwapError as error:
            pointer.refused = True
            logger.warning("a personal policy is not served: %s", error)
            return "refused"

    def _pointer(self, owner: str) -> _Pointer:
        """Return the owner's pointer as it was at most `RECHECK_S` ago."""
        now = self._clock()
        pointer = self._pointers.pop(owner, None)
        if pointer is None or now - pointer.checked_at_s >= RECHECK_S:
            pointer = self._read(owner, now, pointer)
        self._pointers[owner] = pointer
        if len(self._pointers) > _MAX_OWNERS:
            del self._pointers[next(iter(self._pointers))]
        return pointer

    def _read(self, owner: str, now: float, before: _Pointer | None) -> _Pointer:
        path = self._layout.personal_pointer(owner)
        try:
            stamp = file_stamp(path)
            if stamp is None:
                return _Pointer(now)
            if before is not None and before.stamp == stamp:
                before.checked_at_s = now
                return before
            policy = read_json(path, PersonalPolicy)
        except FileNotFoundError:
            return _Pointer(now)
        except (OSError, DataError) as error:
            logger.warning("%s cannot be read: %s", path.name, error)
            return _Pointer(now, reason="unreadable")
        if policy.owner != owner:
            logger.warning("%s belongs to another owner", path.name)
            return _Pointer(now, stamp, reason="unreadable")
        return _Pointer(now, stamp, policy)
