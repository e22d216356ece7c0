"""Finished request -> Turn -> journal -> receipt.

Serving must not fail because recording did: this is one of the two places where a broad `except` is
allowed. What it swallows is counted, and the reply goes out without a receipt.
"""

import asyncio
import logging
import time
from dataclasses import dataclass

from sdpo_ray.capture.conversation import Asked
from sdpo_ray.capture.journal import Journal
from sdpo_ray.records import Consent, FinishReason, Sampling, Turn, VersionSpan
from sdpo_ray.telemetry import Counters

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One response as the engine made it. Made by `serve.engine`; read by `Recorder`."""

    choice: int
    """Index of the response among the `n` that were asked for."""
    response: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    response_logprobs: tuple[float, ...]
    version_spans: tuple[VersionSpan, ...]
    finish_reason: FinishReason
    sampling: Sampling


class Recorder:
    """Records answered requests of one replica. `counters` tells what became of each."""

    def __init__(self, journal: Journal, *, tenant: str = "default") -> None:
        self._journal = journal
        self._tenant = tenant
        self.counters = Counters.empty()
        self.healthy = True
        """Whether the last turn could be stored: a stream promises a receipt only while this holds."""

    def wants(self, asked: Asked) -> bool:
        """Whether a turn of this request will be recorded; counts why not."""
        if asked.consent is Consent.NONE:
            self.counters.add("not_recorded.no_consent")
            return False
        if not asked.messages:
            self.counters.add("not_recorded.not_a_text_chat")
            return False
        return True

    async def record(self, asked: Asked, answered: Answered) -> bool:
        """Store the turn; True once it is on disk, False when it could not be stored."""
        try:
            await asyncio.wrap_future(self._journal.append(self._turn(asked, answered)))
        except Exception as error:
            self.counters.add(f"not_recorded.{type(error).__name__}")
            self.healthy = not isinstance(error, OSError)
            logger.warning("turn %s is not recorded: %s", asked.turn_id, error)
            return False
        self.healthy = True
        self.counters.add("recorded")
        return True

    def _turn(self, asked: Asked, answered: Answered) -> Turn:
        return Turn(
            turn_id=asked.turn_id if answered.choice == 0 else f"{asked.turn_id}-{answered.choice}",
            tenant=self._tenant,
            user=asked.user,
            conversation_id=asked.conversation_id,
            consent=asked.consent,
            messages=asked.messages,
            tools=asked.tools,
            template_kwargs=asked.template_kwargs,
            response=answered.response,
            prompt_ids=answered.prompt_ids,
            response_ids=answered.response_ids,
            response_logprobs=answered.response_logprobs,
            version_spans=answered.version_spans,
            finish_reason=answered.finish_reason,
            sampling=answered.sampling,
            started_at_s=asked.started_at_s,
            finished_at_s=time.time(),
        )
