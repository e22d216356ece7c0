"""A replica that is being stopped: whether it is, and that a SIGTERM is another way to ask for it.

Ray 2.60 tells code of ours nothing of either, so this looks and acts where Ray's own code does.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import ray

logger = logging.getLogger("ray.serve")


def draining() -> bool:
    """Whether Ray Serve is about to stop this replica.

    Its own `/-/healthz` on the replica's port knows; code of ours hears of it when the last request is over.
    """
    return bool(getattr(_replica(), "_shutting_down", False))


def drain_on_sigterm(end: Callable[[], None]) -> None:
    """From now on SIGTERM is answered as Ray Serve's own request to stop, and then with `end`.

    Call it on the replica's event loop. Ray ends a worker at once, from a handler that only the main thread could
    replace, where no code of ours runs (`Worker.main_loop`). So the function that its handler calls is replaced.
    """
    loop = asyncio.get_running_loop()
    begun: list[asyncio.Future[None]] = []

    def begin() -> None:
        if not begun:
            logger.warning("SIGTERM: this replica ends what it has begun, and then itself")
            begun.append(asyncio.ensure_future(_drain_and(end)))

    def terminated(*_: object, **__: object) -> None:
        loop.call_soon_threadsafe(begin)

    ray._private.worker.raise_sys_exit_with_custom_error_message = terminated


async def _drain_and(end: Callable[[], None]) -> None:
    try:
        await _replica().perform_graceful_shutdown()
    finally:
        end()


def _replica() -> Any:
    """Ray Serve's own object behind this replica; None in a process that is none."""
    worker = ray._private.worker.global_worker
    return getattr(worker.actors.get(worker.actor_id), "_replica_impl", None)
