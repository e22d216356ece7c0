"""`/health` and `/ready`: whether this replica is alive, and whether it should get requests.

Neither requires a key, so neither shows a secret, a path or user text.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import JSONResponse

from sdpo_ray.capture.recorder import Recorder
from sdpo_ray.errors import SdpoError
from sdpo_ray.headers import POLICY_VERSION, SWAP_ERROR
from serve.asgi import Receive, Scope, Send, refuse

HEALTH, READY = "/health", "/ready"
_PATH = re.compile(r"(?:/[\w.@+-]+)+/(?=[\w.@+-])")


class Health:
    """Pure ASGI. `check` raises when the replica must be restarted; `served` returns headers of every response."""

    def __init__(
        self,
        *,
        check: Callable[[], Awaitable[None]],
        served: Callable[[], dict[str, str]],
        recorder: Recorder | None,
        queue: Callable[[], dict[str, int]],
        draining: Callable[[], bool],
    ) -> None:
        self._check = check
        self._served = served
        self._recorder = recorder
        self._queue = queue
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await refuse(405, "this is read with GET", "invalid_request_error")(scope, receive, send)
            return
        broken = await self._broken()
        if scope["path"].endswith(HEALTH):
            status, body = (503, {"status": "broken", "reason": broken}) if broken else (200, {"status": "alive"})
        else:
            status, body = self._readiness(broken)
        await JSONResponse(body, status_code=status, headers=self._served())(scope, receive, send)

    async def _broken(self) -> str:
        """Return why this replica cannot answer requests; empty while it can."""
        try:
            await self._check()
        except SdpoError as error:
            return without_paths(str(error))
        except Exception as error:
            # vLLM's own error of a dead engine, of any type and with any text.
            return type(error).__name__
        return ""

    def _readiness(self, broken: str) -> tuple[int, dict[str, Any]]:
        served, draining = self._served(), self._draining()
        reason = broken or ("draining" if draining else "")
        body: dict[str, Any] = {
            "ready": not reason,
            "reason": reason or None,
            "draining": draining,
            "policy_version": int(served[POLICY_VERSION]),
            "swap_error": served.get(SWAP_ERROR),
            "journal": self._journal(),
            "queue": self._queue(),
        }
        return (503 if reason else 200), body

    def _journal(self) -> dict[str, Any] | None:
        """Return the journal's state; None where nothing is recorded. While unhealthy, responses carry no receipts."""
        if self._recorder is None:
            return None
        try:
            size: int | None = self._recorder.backlog_bytes
        except (OSError, SdpoError):
            size = None
        return {"healthy": self._recorder.healthy, "bytes": size}


def without_paths(text: str) -> str:
    """Return the text with every path cut down to its last name."""
    return _PATH.sub("", text)
