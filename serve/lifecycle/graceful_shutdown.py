"""SIGTERM drains a replica, as Ray Serve's own request to stop it does."""

import asyncio
import logging
from collections.abc import Callable

from sdpo_ray.upstream.ray import drain_replica, replace_sigterm_handler

logger = logging.getLogger("ray.serve")


def drain_on_sigterm(exit_process: Callable[[], None]) -> None:
    """From now on answer SIGTERM with Ray Serve's graceful shutdown, and then call `exit_process`.

    Call it on the replica's event loop. A second SIGTERM changes nothing.
    """
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Future[None]] = []

    def begin() -> None:
        if not tasks:
            logger.warning("SIGTERM: this replica finishes its requests and then exits")
            tasks.append(asyncio.ensure_future(_drain_and(exit_process)))

    def on_sigterm(*_: object, **__: object) -> None:
        loop.call_soon_threadsafe(begin)

    replace_sigterm_handler(on_sigterm)


async def _drain_and(exit_process: Callable[[], None]) -> None:
    try:
        await drain_replica()
    finally:
        exit_process()
