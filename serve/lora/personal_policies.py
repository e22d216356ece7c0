"""Who has a personal policy, and whether it may answer: else the shared policy does, and never an error.

The user's own comes before the tenant's. A pointer is looked at again after `LOOK_S`, so a request costs no disk.
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
LOOK_S = 1.0
"""Seconds for which an owner's pointer is taken to be what it was."""
_OWNERS = 10_000
"""Owners whose pointers are remembered."""


@dataclass(slots=True)
class _Looked:
    """What an owner's pointer said."""

    at_s: float
    stamp: FileStamp | None = None
    """None where there is no file."""
    policy: PersonalPolicy | None = None
    why: str = "absent"
    """Why there is no policy."""
    refused: bool = False
    """The engine would not have this policy. A pointer that is written again is tried again."""


class PersonalPolicies:
    """Gives requests their personal policies. `served` says which version of the shared policy is beneath them."""

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
        self._looked: dict[str, _Looked] = {}
        self.counters = Counters.empty()
        """`served`, or why the shared policy answered: absent, unreadable, stale, refused, crowded."""

    @asynccontextmanager
    async def select(self, chat: ChatContext | None) -> AsyncIterator[LoadedAdapter | None]:
        """The adapter for a request that enters now, kept until the engine has it; None for the shared policy."""
        if chat is None:
            yield None
            return
        if not chat.admitted:
            chat.adapter = await self._chosen(chat)
            chat.context.adapter = chat.adapter.name if chat.adapter is not None else ""
        if chat.adapter is None:
            yield None
            return
        with self._cache.pinned(chat.adapter):
            yield chat.adapter

    async def _chosen(self, chat: ChatContext) -> LoadedAdapter | None:
        user = chat.request.user if chat.request is not None else ""
        why = "absent"
        for owner in owners(self._pseudonyms(), tenant=chat.context.tenant, user=user):
            found = await self._usable(owner)
            if isinstance(found, LoadedAdapter):
                self.counters.add("served")
                return found
            why = found if why == "absent" else why
        self.counters.add(why)
        return None

    async def _usable(self, owner: str) -> LoadedAdapter | str:
        """The owner's adapter in the engine, or why there is none."""
        looked = self._look(owner)
        policy = looked.policy
        if policy is None:
            return looked.why
        if policy.base_version != self._served():
            return "stale"
        if looked.refused:
            return "refused"
        try:
            return await self._cache.get(policy.name, policy.adapter, policy.fingerprint, policy.digests)
        except CacheFull:
            return "crowded"
        except SwapError as error:
            looked.refused = True
            logger.warning("a personal policy is not served: %s", error)
            return "refused"

    def _look(self, owner: str) -> _Looked:
        """What the owner's pointer says, at most `LOOK_S` ago."""
        now = self._clock()
        looked = self._looked.pop(owner, None)
        if looked is None or now - looked.at_s >= LOOK_S:
            looked = self._read(owner, now, looked)
        self._looked[owner] = looked
        if len(self._looked) > _OWNERS:
            del self._looked[next(iter(self._looked))]
        return looked

    def _read(self, owner: str, now: float, before: _Looked | None) -> _Looked:
        path = self._layout.personal_pointer(owner)
        try:
            stamp = file_stamp(path)
            if stamp is None:
                return _Looked(now)
            if before is not None and before.stamp == stamp:
                before.at_s = now
                return before
            policy = read_json(path, PersonalPolicy)
        except FileNotFoundError:
            return _Looked(now)
        except (OSError, DataError) as error:
            logger.warning("%s cannot be read: %s", path.name, error)
            return _Looked(now, why="unreadable")
        if policy.owner != owner:
            logger.warning("%s is somebody else's", path.name)
            return _Looked(now, stamp, why="unreadable")
        return _Looked(now, stamp, policy)
