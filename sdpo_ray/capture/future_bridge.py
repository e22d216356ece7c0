"""Await futures of other threads on an event loop, with one wake-up for all futures that finished meanwhile.

`asyncio.wrap_future` wakes the loop once for each waiting task: when 64 turns share a sync, those wake-ups cost more
than everything else that makes the turns durable.
"""

import asyncio
from collections import deque
from collections.abc import MutableMapping
from concurrent.futures import Future
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

_Result = TypeVar("_Result")


async def settled(future: "Future[_Result]") -> _Result:
    """The result of `future`, or its exception. Cancelling the caller does not cancel it; many tasks may await it."""
    loop = asyncio.get_running_loop()
    waiters = _waiters.get(loop)
    if waiters is None:
        waiters = _waiters[loop] = _Waiters()
    waiter = loop.create_future()
    waiters.add(future, waiter)
    await waiter
    return future.result()


class _Waiters:
    """The waiting tasks of one event loop."""

    def __init__(self) -> None:
        self._waiters: dict[Future[Any], list[asyncio.Future[None]]] = {}
        self._done: deque[Future[Any]] = deque()
        self._scheduled = False

    def add(self, future: "Future[Any]", waiter: "asyncio.Future[None]") -> None:
        """Wake `waiter` when `future` is done. Called on the loop's thread, as all methods but `_on_done`."""
        waiters = self._waiters.get(future)
        if waiters is not None:
            waiters.append(waiter)
            return
        self._waiters[future] = [waiter]
        future.add_done_callback(self._on_done)

    def _on_done(self, done: "Future[Any]") -> None:
        """Called on any thread."""
        # The loop is taken from a waiter: a reference kept here would keep it alive in the weak dictionary.
        loop = self._waiters[done][0].get_loop()
        self._done.append(done)
        if not self._scheduled and not loop.is_closed():
            self._scheduled = True
            loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        # Reset first: a future that is done while the queue is emptied has to schedule another call.
        self._scheduled = False
        while self._done:
            for waiter in self._waiters.pop(self._done.popleft()):
                if not waiter.done():
                    waiter.set_result(None)


_waiters: MutableMapping[asyncio.AbstractEventLoop, _Waiters] = WeakKeyDictionary()
