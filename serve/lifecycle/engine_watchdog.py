"""A replica whose engine died, or hangs, ends with it: its requests would all fail until Ray Serve's next look.

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
PULSE_S = 2.0


class WatchedEngine(Protocol):
    """What is watched of an engine. `serve.engine.recording_engine.RecordingLLM` is one."""

    died: asyncio.Event
    """Set when a request is told that the engine is dead."""

    @property
    def errored(self) -> bool: ...
    async def pulse(self) -> None:
        """Return when the engine's loop comes round; raise where it is dead."""

    def kill(self) -> None: ...


def exit_process() -> None:
    """End this process now. Not `sys.exit`, which waits for threads that wait for the engine."""
    os._exit(1)


async def watch_engine(
    engine: WatchedEngine,
    *,
    patience_s: float,
    leaving: Callable[[], bool],
    exit_process: Callable[[], None] = exit_process,
) -> None:
    """End this process when the engine is dead, or has answered nothing for `patience_s`.

    But not where the process is `leaving`, and has stopped the engine in peace.
    """
    hanging = asyncio.ensure_future(_hangs(engine, patience_s))
    # Whoever is told asks again at once: there is no time for a look.
    told = asyncio.ensure_future(engine.died.wait())
    while not (engine.errored or told.done() or hanging.done()):
        await asyncio.wait({told, hanging}, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
    if leaving():
        return
    if engine.errored or told.done():
        logger.critical("the engine is dead, and this replica ends with it")
    else:
        logger.critical("the engine has answered nothing for %g s, and this replica ends with it", patience_s)
        # It would not notice that nobody needs it any more.
        engine.kill()
    exit_process()


async def _hangs(engine: WatchedEngine, patience_s: float) -> None:
    """Return once the engine has answered nothing for so long."""
    while True:
        answer = asyncio.ensure_future(engine.pulse())
        # Counted, not read off a clock: while this process itself was stopped, it has not waited.
        waited_s = 0.0
        while not answer.done():
            if waited_s >= patience_s:
                answer.cancel()
                return
            await asyncio.sleep(POLL_S)
            waited_s += POLL_S
        if not answer.cancelled():
            # That it died is for `errored` to say.
            answer.exception()
        await asyncio.sleep(PULSE_S)
