"""To wait on an event loop for what other threads finish, with one wake-up for all that is finished meanwhile.

`asyncio.wrap_future` wakes the loop once for each future: where 64 turns share a sync, those wake-ups cost more than
everything else that is done to make them durable.
"""

import asyncio
from collections import deque
from collections.abc import MutableMapping
from concurrent.futures import Future
from typing import TypeVar
from weakref import WeakKeyDictionary

_Result = TypeVar("_Result")


async def settled(future: "Future[_Result]") -> _Result:
    """The result of `future`, or its exception. Who stops waiting does not cancel it."""
    loop = asyncio.get_running_loop()
    waiting = _waiting.setdefault(loop, _Waiting())
    mine = loop.create_future()
    future.add_done_callback(lambda done: waiting.tell(mine))
    await mine
    return future.result()


class _Waiting:
    """Those on one event loop who wait."""

    def __init__(self) -> None:
        self._done: deque[asyncio.Future[None]] = deque()
        self._called = False

    def tell(self, waiting: "asyncio.Future[None]") -> None:
        """From any thread."""
        self._done.append(waiting)
        loop = waiting.get_loop()
        if not self._called and not loop.is_closed():
            self._called = True
            loop.call_soon_threadsafe(self._tell_all)

    def _tell_all(self) -> None:
        # In this order: what is appended while the queue is emptied calls again.
        self._called = False
        while self._done:
            waiting = self._done.popleft()
            if not waiting.done():
                waiting.set_result(None)


_waiting: MutableMapping[asyncio.AbstractEventLoop, _Waiting] = WeakKeyDictionary()
