"""To wait on an event loop for what other threads finish, with one wake-up for all that is finished meanwhile.

`asyncio.wrap_future` wakes the loop once for each who waits: where 64 turns share a sync, those wake-ups cost more than
everything else that is done to make them durable.
"""

import asyncio
from collections import deque
from collections.abc import MutableMapping
from concurrent.futures import Future
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

_Result = TypeVar("_Result")


async def settled(future: "Future[_Result]") -> _Result:
    """The result of `future`, or its exception. Who stops waiting does not cancel it, and many may wait for one."""
    loop = asyncio.get_running_loop()
    waiting = _waiting.get(loop)
    if waiting is None:
        waiting = _waiting[loop] = _Waiting()
    mine = loop.create_future()
    waiting.add(future, mine)
    await mine
    return future.result()


class _Waiting:
    """Those on one event loop who wait."""

    def __init__(self) -> None:
        self._waiters: dict[Future[Any], list[asyncio.Future[None]]] = {}
        self._done: deque[Future[Any]] = deque()
        self._called = False

    def add(self, future: "Future[Any]", waiter: "asyncio.Future[None]") -> None:
        """On the loop's own thread, as everything but `_tell`."""
        waiters = self._waiters.get(future)
        if waiters is not None:
            waiters.append(waiter)
            return
        self._waiters[future] = [waiter]
        future.add_done_callback(self._tell)

    def _tell(self, done: "Future[Any]") -> None:
        """From any thread."""
        # Asked of one who waits: kept here, a loop would never be let go.
        loop = self._waiters[done][0].get_loop()
        self._done.append(done)
        if not self._called and not loop.is_closed():
            self._called = True
            loop.call_soon_threadsafe(self._tell_all)

    def _tell_all(self) -> None:
        # In this order: what is appended while the queue is emptied calls again.
        self._called = False
        while self._done:
            for waiter in self._waiters.pop(self._done.popleft()):
                if not waiter.done():
                    waiter.set_result(None)


_waiting: MutableMapping[asyncio.AbstractEventLoop, _Waiting] = WeakKeyDictionary()
