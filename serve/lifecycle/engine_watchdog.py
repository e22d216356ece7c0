"""Ends a replica whose engine died or hangs: its requests would all fail until Ray Serve's next health check.

With the process its sockets close, so that HAProxy sends the next request to another replica at once, and Ray Serve
starts a new one at once.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Protocol

logger = logging.getLogger("ray.serve")

POLL_S = 0.05
PING_S = 2.0


class WatchedEngine(Protocol):
    """What the watchdog needs of an engine. `serve.engine.recording_engine.RecordingLLM` is one."""

    died: asyncio.Event
    """Set when a request fails because the engine is dead."""

    @property
    def errored(self) -> bool: ...
    async def ping(self) -> None:
        """Return when the engine's loop comes round; raise where it is dead."""

    def kill(self) -> None: ...


def exit_process() -> None:
    """End this process now. Not `sys.exit`, which waits for threads that wait for the engine."""
    os._exit(1)


async def watch_engine(
    engine: WatchedEngine,
    *,
    patience_s: float,
    stopping: Callable[[], bool],
    exit_process: Callable[[], None] = exit_process,
) -> None:
    """Call `exit_process` when the engine is dead, or has not answered a ping for `patience_s`.

    Returns without it where the replica is `stopping`, and has shut the engine down itself.
    """
    hanging = asyncio.ensure_future(_hangs(engine, patience_s))
    # A client whose request failed retries at once: the next poll would be too late.
    died = asyncio.ensure_future(engine.died.wait())
    while not (engine.errored or died.done() or hanging.done()):
        await asyncio.wait({died, hanging}, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
    if stopping():
        return
    if engine.errored or died.done():
        logger.critical("the engine is dead, and this replica ends with it")
    else:
        logger.critical("the engine has answered nothing for %g s, and this replica ends with it", patience_s)
        # A hanging engine process would outlive this one.
        engine.kill()
    exit_process()


async def _hangs(engine: WatchedEngine, patience_s: float) -> None:
    """Return once the engine has left a ping unanswered for `patience_s`."""
    while True:
        answer = asyncio.ensure_future(engine.ping())
        # Counted, not read off a clock: while this process itself was stopped, it has not waited.
        waited_s = 0.0
        while not answer.done():
            if waited_s >= patience_s:
                answer.cancel()
                return
            await asyncio.sleep(POLL_S)
            waited_s += POLL_S
        if not answer.cancelled():
            # Retrieved and ignored: `errored` tells that the engine died.
            answer.exception()
        await asyncio.sleep(PING_S)
