"""Replicas of one run swap weights one after the other, and HAProxy sends requests to the others meanwhile.

A slot is a file lock beside the release pointer, which every replica of the run reads: the system releases it when
its holder is killed. Without HAProxy, requests wait at the gate.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sdpo_ray.io.locks import lock_file, try_acquire
from sdpo_ray.upstream.haproxy import HAProxyClient

_POLL_S = 0.05


class RollingUpdate:
    """Update slots of one replica among those of its run that serve one audience. `lock` is a file that they share."""

    def __init__(self, lock: Path, haproxy: HAProxyClient | None) -> None:
        self._lock = lock
        self._haproxy = haproxy

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[bool]:
        """Wait for this replica's slot. Yields whether new requests go to other replicas while it lasts."""
        lock = lock_file(self._lock)
        while not try_acquire(lock):
            await asyncio.sleep(_POLL_S)
        try:
            drained = await self._haproxy.drain() if self._haproxy is not None else []
            try:
                yield bool(drained)
            finally:
                if self._haproxy is not None:
                    await asyncio.shield(self._haproxy.undrain(drained))
        finally:
            lock.release()
