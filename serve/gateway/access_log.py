"""One JSON line a request in the replica's log file: who, what, when, how long; never a word of what was said.

Ray Serve writes it (`LoggingConfig(encoding="JSON")` in `serve.app`) to `<session>/logs/serve/`. Behind HAProxy it does
so in batches, so lines are pushed out here once a second.
"""

import asyncio
import logging
from typing import Any

from serve.gateway.auth import OPEN
from serve.gateway.request_record import RequestRecord

logger = logging.getLogger("ray.serve")
_FLUSH_S = 1.0
_OURS_ALONE = {
    # Ray Serve would add the client's own request id, whatever that says.
    "skip_context_filter": True,
    "log_to_stderr": False,
}


class AccessLog:
    """Writes for one replica."""

    def __init__(self, replica: str) -> None:
        self._replica = replica
        self._flush: asyncio.TimerHandle | None = None

    def write(self, record: RequestRecord) -> None:
        """One line; none for a probe that found all well."""
        if record.route in OPEN and record.outcome == "ok":
            return
        logger.info("request", extra=_OURS_ALONE | {"replica": self._replica} | line(record))
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(_FLUSH_S, self.flush)

    def flush(self) -> None:
        """Push out what waits."""
        self._flush = None
        for handler in logger.handlers:
            handler.flush()


def line(record: RequestRecord) -> dict[str, Any]:
    """What is said of a request; also what a trace says of it."""
    context = record.context
    said: dict[str, Any] = {
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
    return {name: value for name, value in said.items() if value not in (None, "")}
