"""Sends copies of chats to a candidate whose responses no user sees, and records how long they take and how many fail.

A copy runs beside the champion's response and carries no consent, so only figures are kept of it. Copies beyond
`MAX_COPIES` at once are dropped, and no response waits for one.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from sdpo_ray.headers import CONSENT
from sdpo_ray.records import Consent
from sdpo_ray.records.run_events import ShadowResponse
from sdpo_ray.telemetry import Counters, EventFile
from serve.canary.proxy import ChatProxy, UpstreamError

MAX_COPIES = 4


class ShadowCopies:
    """Copies of one replica, whose figures go to a file of its own."""

    def __init__(self, proxy: ChatProxy, counters: Counters) -> None:
        self._proxy = proxy
        self._counters = counters
        self._name = f"{uuid4().hex}.jsonl"
        self._copies: set[asyncio.Task[None]] = set()

    def copy(self, request: Mapping[str, Any], headers: Mapping[str, str], version: int, folder: Path) -> None:
        """Start sending a copy, or drop it; return at once. The figures go to a file in `folder`."""
        if len(self._copies) >= MAX_COPIES:
            self._counters.add("shadow.dropped")
            return
        plain = {name: value for name, value in request.items() if name not in ("stream", "stream_options")}
        no_consent = {**headers, CONSENT: Consent.NONE.value}
        task = asyncio.ensure_future(self._send({**plain, "n": 1}, no_consent, version, folder / self._name))
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)

    async def _send(self, request: Mapping[str, Any], headers: Mapping[str, str], version: int, file: Path) -> None:
        began = time.monotonic()
        tokens, error = 0, ""
        try:
            async with self._proxy.open(request, headers, version) as reply:
                tokens = json.loads(await reply.aread())["usage"]["completion_tokens"]
        except UpstreamError as failure:
            error = str(failure)
        except httpx.HTTPError:
            error = "connection"
        self._counters.add("shadow.failed" if error else "shadow.answered")
        seconds = round(time.monotonic() - began, 4)
        EventFile(file).write(ShadowResponse(cycle=version, seconds=seconds, tokens=tokens, error=error))
