"""Writes one JSON line a request into the replica's log file, without any user text.

Ray Serve writes it (`LoggingConfig(encoding="JSON")` in `serve.app`) to `<session>/logs/serve/`. Behind HAProxy it
buffers lines, so they are flushed here once a second.
"""

import asyncio
import logging
from typing import Any

from serve.gateway.auth import OPEN
from serve.gateway.request_record import RequestRecord

logger = logging.getLogger("ray.serve")
_FLUSH_S = 1.0
_EXTRA = {
    # Ray Serve would add the client's own request id, which may be any text.
    "skip_context_filter": True,
    "log_to_stderr": False,
}


class AccessLog:
    """Access log of one replica."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._flush: asyncio.TimerHandle | None = None

    def write(self, record: RequestRecord) -> None:
        """Write one line; none for a successful health probe."""
        if record.route in OPEN and record.outcome == "ok":
            return
        logger.info("request", extra=_EXTRA | {"replica": self._replica} | line(record))
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(_FLUSH_S, self.flush)

    def flush(self) -> None:
        """Flush the log's handlers."""
        self._flush = None
        for handler in logger.handlers:
            handler.flush()


def line(record: RequestRecord) -> dict[str, Any]:
    """Return the fields of a request's line, which are also the attributes of its span."""
    context = record.context
    fields: dict[str, Any] = {
        "request_id": context.request_id,
        "method": record.method,
        "route": record.route,
        "status": record.status,
        "outcome": record.outcome,
        "reason": record.reason,
        "tenant": context.tenant,
        "key_id": context.key_id,
        "policy_version": context.policy_version,
        "adapter": context.adapter,
        "prompt_tokens": context.prompt_tokens,
        "response_tokens": context.response_tokens,
        "seconds": round(record.seconds, 6),
        "ttft_s": None if record.ttft_s is None else round(record.ttft_s, 6),
        "gate_s": round(record.seconds_in("gate"), 6),
        "journal_s": round(record.seconds_in("journal"), 6),
    }
    return {name: value for name, value in fields.items() if value not in (None, "")}
