"""A replica whose engine died ends with it: its requests would all fail until Ray Serve's next look at its health.

With the process go its sockets, so that HAProxy sends the next request to another replica at once; and Ray Serve starts
a new one at once, too.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Protocol

logger = logging.getLogger("ray.serve")

POLL_S = 0.05


class Engine(Protocol):
    """What is watched of an engine. `vllm.v1.engine.async_llm.AsyncLLM` is one."""

    @property
    def errored(self) -> bool: ...


def _end() -> None:
    # Not `sys.exit`, which waits for threads that wait for the engine.
    os._exit(1)


async def die_with(engine: Engine, *, leaving: Callable[[], bool], end: Callable[[], None] = _end) -> None:
    """End this process when the engine is dead; but not where the process is `leaving`, and has stopped it in peace."""
    while not engine.errored:
        await asyncio.sleep(POLL_S)
    if not leaving():
        logger.critical("the engine is dead, and this replica ends with it")
        end()
