"""Finished request -> Turn -> redacted -> event log -> receipt; and feedback the same way.

Serving must not fail because recording did: this is one of the two places where a broad `except` is
allowed. What it swallows is counted, and the reply goes out without a receipt. What could not be redacted is not
recorded, and no log line repeats what people said.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from sdpo_ray.capture.chat_request import ChatRequest
from sdpo_ray.capture.feedback import FeedbackRequest
from sdpo_ray.capture.future_bridge import settled
from sdpo_ray.capture.pairing_keys import pairing_keys
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.errors import DataError, TooManyDigits
from sdpo_ray.eventlog.protocol import EventLog
from sdpo_ray.records import Consent, Event, Feedback, FinishReason, Sampling, ToolCall, Turn, VersionSpan
from sdpo_ray.redaction import Redactor, redact_feedback, redact_turn
from sdpo_ray.telemetry import Counters

logger = logging.getLogger(__name__)
_Record = TypeVar("_Record", Turn, Feedback)

THREAD_CHARS = 2_000
"""Longer records are redacted in a thread, since the event loop would hold up everybody's streams: measured on one
core, so many characters of prose take 0.25 ms and so many of nothing but numbers 60 ms; a thread costs 0.15 ms."""


class _NotRedacted(DataError):
    """Redaction itself failed. Holds the kind of error alone: its text may repeat the record's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResponse:
    """One response as the engine made it. Made by `serve.engine.recording_engine`; read by `Recorder`."""

    choice: int
    """Index of the response among the `n` that were asked for."""
    response: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    response_logprobs: tuple[float, ...]
    version_spans: tuple[VersionSpan, ...]
    finish_reason: FinishReason
    sampling: Sampling
    response_calls: tuple[ToolCall, ...] = ()
    adapter: str = ""
    """These are as on `records.Turn`."""
    finished_at_s: float | None = None
    """None for an answer that is finished now."""


@dataclass(frozen=True, slots=True)
class _Appended:
    """An event that the log was given, and where to count what becomes of it."""

    event: Event
    durable: "Future[None]"
    counters: Counters


class Recorder:
    """Records answered requests and feedback of one replica. `pseudonyms` gives the keys as of now."""

    def __init__(
        self, log: EventLog, redactor: Redactor, pseudonyms: Callable[[], Pseudonyms], *, timeout_s: float
    ) -> None:
        """`timeout_s` is the longest that an answer waits for its turn to be durable."""
        self._log = log
        self._timeout_s = timeout_s
        self._redactor = redactor
        self._pseudonyms = pseudonyms
        self.counters = Counters.empty()
        """What became of each turn; `aborted` of those that are recorded were broken off."""
        self.feedback = Counters.empty()
        """What became of each feedback, by the same names."""
        self.redactions = Counters.empty()
        """Pieces that were taken out of what is recorded, by kind."""
        self.healthy = True
        """Whether the log took what it was given last: a stream promises a receipt only while this holds."""
        self._begun: set[asyncio.Task[bool]] = set()

    @property
    def backlog_bytes(self) -> int:
        """About how much the event log holds. Raises OSError."""
        return self._log.backlog_bytes({})

    def close(self) -> None:
        """Write what is queued, and let go of the log."""
        self._log.close()

    def wants(self, asked: ChatRequest) -> bool:
        """Whether a turn of this request will be recorded; counts why not."""
        if asked.consent is Consent.NONE:
            self.counters.add("not_recorded.no_consent")
            return False
        if not asked.messages:
            self.counters.add("not_recorded.not_a_text_chat")
            return False
        return True

    def record(self, asked: ChatRequest, *answers: EngineResponse) -> Coroutine[Any, Any, bool]:
        """Store a turn for each answer. Await what it returns: True once all are durable, False if one could not be.

        The log has short turns when this returns, so that what a caller does before it waits costs no time. What is
        begun is done to the end: somebody who hangs up while they wait leaves whole records.
        """
        if any(_num_chars(asked, answered) > THREAD_CHARS for answered in answers):
            return self._shielded(asked, answers)
        # In the caller's own task: each further turn of a busy event loop makes the answer wait longer than the sync.
        return self._settled([self._append(self._maker(asked, answered), self.counters) for answered in answers])

    async def _shielded(self, asked: ChatRequest, answers: Sequence[EngineResponse]) -> bool:
        return await asyncio.shield(self.record_later(asked, *answers))

    async def _settled(self, appended: "list[_Appended | None]") -> bool:
        try:
            return await self._settle_all(appended)
        except asyncio.CancelledError:
            self.finish(self._settle_all(appended))
            raise

    def record_later(self, asked: ChatRequest, *answers: EngineResponse) -> "asyncio.Task[bool]":
        """Begin to store them."""
        return self.finish(self._record(asked, answers))

    def finish(self, storing: Coroutine[Any, Any, bool]) -> "asyncio.Task[bool]":
        """Await in the background what `record` returned, for whoever cannot wait any more."""
        task = asyncio.create_task(storing)
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)
        return task

    async def _record(self, asked: ChatRequest, answers: Sequence[EngineResponse]) -> bool:
        tries = (self._try(self._maker(asked, a), _num_chars(asked, a), self.counters) for a in answers)
        return None not in await asyncio.gather(*tries)

    def _maker(self, asked: ChatRequest, answered: EngineResponse) -> Callable[[], Turn]:
        finished_at_s = time.time() if answered.finished_at_s is None else answered.finished_at_s
        return lambda: self._turn(asked, answered, finished_at_s)

    async def record_feedback(self, given: FeedbackRequest) -> str | None:
        """Store feedback; its id once it is durable, None when it could not be stored or may not be."""
        if given.consent is Consent.NONE:
            self.feedback.add("not_recorded.no_consent")
            return None
        chars = len(given.comment) + len(given.edited)
        # Shielded, so that somebody who hangs up now leaves a record that is whole, and counted.
        stored = await asyncio.shield(self._try(lambda: self._feedback(given), chars, self.feedback))
        return stored.feedback_id if isinstance(stored, Feedback) else None

    async def _try(self, make: Callable[[], Event], chars: int, counters: Counters) -> Event | None:
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
        """Whoever is cancelled may call it again with the same list, from which those that are settled are gone."""
        stored = True
        while appended:
            first = appended[0]
            stored = first is not None and await self._settle(first) and stored
            del appended[0]
        return stored

    async def _settle(self, appended: "_Appended") -> bool:
        """Whether it became durable; counts what became of it."""
        event, counters = appended.event, appended.counters
        try:
            async with asyncio.timeout(self._timeout_s):
                await settled(appended.durable)
        except Exception as error:
            # Once: a full disk that fails every turn is no better for a line of each.
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
        # The system's errors are about files; any other text may repeat what somebody said.
        logger.warning("not recorded: %s", error if isinstance(error, (OSError, _NotRedacted)) else reason)

    def _turn(self, asked: ChatRequest, answered: EngineResponse, finished_at_s: float) -> Turn:
        pseudonyms = self._pseudonyms()
        keys = pairing_keys(
            key=pseudonyms.pairing_key,
            tenant=asked.tenant,
            user=asked.user,
            conversation_id=asked.conversation_id,
            messages=asked.messages,
            response=answered.response,
        )
        turn = Turn(
            turn_id=asked.turn_id if answered.choice == 0 else f"{asked.turn_id}-{answered.choice}",
            tenant=asked.tenant,
            user=pseudonyms.of(asked.user),
            conversation_id=keys.conversation if asked.conversation_id else "",
            consent=asked.consent,
            messages=asked.messages,
            tools=asked.tools,
            template_kwargs=asked.template_kwargs,
            response=answered.response,
            response_calls=answered.response_calls,
            prompt_ids=answered.prompt_ids,
            response_ids=answered.response_ids,
            response_logprobs=answered.response_logprobs,
            version_spans=answered.version_spans,
            finish_reason=answered.finish_reason,
            sampling=answered.sampling,
            adapter=answered.adapter,
            started_at_s=asked.started_at_s,
            finished_at_s=finished_at_s,
            keys=keys,
        )
        return self._redacted(redact_turn, turn)

    def _feedback(self, given: FeedbackRequest) -> Feedback:
        pseudonyms = self._pseudonyms()
        feedback = given.feedback(pseudonym=pseudonyms.of(given.user), key=pseudonyms.pairing_key)
        return self._redacted(redact_feedback, feedback)

    def _redacted(self, redact: Callable[[_Record, Redactor], _Record], record: _Record) -> _Record:
        try:
            return redact(record, self._redactor)
        except TooManyDigits:
            raise
        except Exception as error:
            raise _NotRedacted(f"redaction failed with {type(error).__name__}") from None


def _num_chars(asked: ChatRequest, answered: EngineResponse) -> int:
    """Characters that redaction will read."""
    said = sum(len(m.content) + sum(len(call.arguments) for call in m.tool_calls) for m in asked.messages)
    called = sum(len(call.arguments) for call in answered.response_calls)
    return said + len(asked.tools) + len(asked.template_kwargs) + len(answered.response) + called
