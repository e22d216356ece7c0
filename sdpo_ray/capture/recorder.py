"""Record turns and feedback: make the record, redact it, append it to the event log, wait until it is durable.

A failure to record must not fail serving: this is one of the two places where a broad `except` is allowed. Failures are
counted, and the reply is sent without a receipt. A record that cannot be redacted is not stored, and no log line
repeats text of users.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from sdpo_ray.capture.chat_request import ChatRequest
from sdpo_ray.capture.engine_response import EngineResponse, make_turn, num_chars
from sdpo_ray.capture.feedback import FeedbackRequest
from sdpo_ray.capture.future_bridge import settled
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.errors import DataError, TooManyDigits
from sdpo_ray.eventlog.protocol import EventLog
from sdpo_ray.records import Consent, Event, Feedback, FinishReason, Turn
from sdpo_ray.redaction import Redactor, redact_feedback, redact_turn
from sdpo_ray.telemetry import Counters

logger = logging.getLogger(__name__)
_Record = TypeVar("_Record", Turn, Feedback)

THREAD_CHARS = 2_000
"""Longer records are redacted in a thread, since the event loop would delay all streams. Measured on one core: so many
characters of prose take 0.25 ms, so many digits 60 ms; a thread costs 0.15 ms."""


class _NotRedacted(DataError):
    """Redaction failed. Holds only the type of the error, since its message may repeat text of the record."""


@dataclass(frozen=True, slots=True)
class _Appended:
    """An event that was appended to the log, and the counters for its outcome."""

    event: Event
    durable: "Future[None]"
    counters: Counters


class Recorder:
    """Records answered requests and feedback of one replica. `pseudonyms` returns the current keys."""

    def __init__(
        self, log: EventLog, redactor: Redactor, pseudonyms: Callable[[], Pseudonyms], *, timeout_s: float
    ) -> None:
        """`timeout_s` bounds the time that an answer waits for its turn to be durable."""
        self._log = log
        self._timeout_s = timeout_s
        self._redactor = redactor
        self._pseudonyms = pseudonyms
        self.counters = Counters.empty()
        """Outcomes of turns: `recorded`, of these `aborted`, and `not_recorded.<reason>`."""
        self.feedback = Counters.empty()
        """Outcomes of feedback, by the same names."""
        self.redactions = Counters.empty()
        """Redacted entities of recorded turns and feedback, by kind."""
        self.healthy = True
        """Whether the last event became durable: streams promise a receipt only while this holds."""
        self._tasks: set[asyncio.Task[bool]] = set()

    @property
    def backlog_bytes(self) -> int:
        """Approximate size of the event log. Raises OSError."""
        return self._log.backlog_bytes({})

    def close(self) -> None:
        """Write the queued events, and close the log."""
        self._log.close()

    def wants(self, request: ChatRequest) -> bool:
        """Whether to record a turn of this request; counts the reason when not."""
        if request.consent is Consent.NONE:
            self.counters.add("not_recorded.no_consent")
            return False
        if not request.messages:
            self.counters.add("not_recorded.not_a_text_chat")
            return False
        return True

    def record(self, request: ChatRequest, *responses: EngineResponse) -> Coroutine[Any, Any, bool]:
        """Store a turn for each response. The result is True once all are durable, False if one could not be stored.

        Short turns are appended before this returns, so the caller can do other work before it awaits the result.
        Cancelling the await does not stop the recording: a client that disconnects leaves complete records.
        """
        if any(num_chars(request, response) > THREAD_CHARS for response in responses):
            return self._shielded(request, responses)
        # In the caller's own task: on a busy event loop, each further task switch delays the answer more than the sync.
        return self._settled([self._append(self._maker(request, each), self.counters) for each in responses])

    def record_later(self, request: ChatRequest, *responses: EngineResponse) -> "asyncio.Task[bool]":
        """Store the turns in a background task."""
        return self.finish(self._record(request, responses))

    def finish(self, recording: Coroutine[Any, Any, bool]) -> "asyncio.Task[bool]":
        """Await the result of `record` in a background task, for a caller that cannot wait any more."""
        task = asyncio.create_task(recording)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def record_feedback(self, request: FeedbackRequest) -> str | None:
        """Store feedback. Returns its id once it is durable; None without consent, or when it could not be stored."""
        if request.consent is Consent.NONE:
            self.feedback.add("not_recorded.no_consent")
            return None
        chars = len(request.comment) + len(request.edited)
        # Shielded: a client that disconnects now leaves a record that is complete and counted.
        stored = await asyncio.shield(self._store(lambda: self._feedback(request), chars, self.feedback))
        return stored.feedback_id if isinstance(stored, Feedback) else None

    async def _shielded(self, request: ChatRequest, responses: Sequence[EngineResponse]) -> bool:
        return await asyncio.shield(self.record_later(request, *responses))

    async def _settled(self, appended: "list[_Appended | None]") -> bool:
        try:
            return await self._settle_all(appended)
        except asyncio.CancelledError:
            self.finish(self._settle_all(appended))
            raise

    async def _record(self, request: ChatRequest, responses: Sequence[EngineResponse]) -> bool:
        stores = (self._store(self._maker(request, r), num_chars(request, r), self.counters) for r in responses)
        return None not in await asyncio.gather(*stores)

    def _maker(self, request: ChatRequest, response: EngineResponse) -> Callable[[], Turn]:
        finished_at_s = time.time() if response.finished_at_s is None else response.finished_at_s
        return lambda: self._turn(request, response, finished_at_s)

    async def _store(self, make: Callable[[], Event], chars: int, counters: Counters) -> Event | None:
        if chars > THREAD_CHARS:
            making = asyncio.create_task(asyncio.to_thread(make))
            await asyncio.wait({making})
            make = making.result
        appended = self._append(make, counters)
        return appended.event if appended is not None and await self._settle(appended) else None

    def _append(self, make: Callable[[], Event], counters: Counters) -> "_Appended | None":
        try:
            event = make()
            return _Appended(event, self._log.append(event), counters)
        except Exception as error:
            self._failed(error, counters)
            return None

    async def _settle_all(self, appended: "list[_Appended | None]") -> bool:
        """Whether all events became durable. Settled ones leave the list, so a cancelled call can be repeated."""
        stored = True
        while appended:
            first = appended[0]
            stored = first is not None and await self._settle(first) and stored
            del appended[0]
        return stored

    async def _settle(self, appended: "_Appended") -> bool:
        """Wait until the event is durable, and count the outcome; False when it failed."""
        event, counters = appended.event, appended.counters
        try:
            async with asyncio.timeout(self._timeout_s):
                await settled(appended.durable)
        except Exception as error:
            # Logged once: a full disk fails every turn, and a line for each would not help.
            self._failed(error, counters, quietly=not self.healthy)
            self.healthy = False
            return False
        self.healthy = True
        counters.add("recorded")
        if isinstance(event, Turn) and event.finish_reason is FinishReason.ABORT:
            counters.add("aborted")
        for redaction in event.redactions:
            self.redactions.add(redaction.kind, redaction.n)
        return True

    def _failed(self, error: Exception, counters: Counters, *, quietly: bool = False) -> None:
        reason = "redaction" if isinstance(error, _NotRedacted) else type(error).__name__
        counters.add(f"not_recorded.{reason}")
        if quietly:
            return
        # Messages of OSError are about files; those of other errors may repeat text of users.
        logger.warning("not recorded: %s", error if isinstance(error, (OSError, _NotRedacted)) else reason)

    def _turn(self, request: ChatRequest, response: EngineResponse, finished_at_s: float) -> Turn:
        turn = make_turn(request, response, pseudonyms=self._pseudonyms(), finished_at_s=finished_at_s)
        return self._redacted(redact_turn, turn)

    def _feedback(self, request: FeedbackRequest) -> Feedback:
        pseudonyms = self._pseudonyms()
        feedback = request.feedback(pseudonym=pseudonyms.of(request.user), key=pseudonyms.pairing_key)
        return self._redacted(redact_feedback, feedback)

    def _redacted(self, redact: Callable[[_Record, Redactor], _Record], record: _Record) -> _Record:
        try:
            return redact(record, self._redactor)
        except TooManyDigits:
            raise
        except Exception as error:
            raise _NotRedacted(f"redaction failed with {type(error).__name__}") from None
