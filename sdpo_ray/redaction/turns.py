"""Redact turns and feedback."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from sdpo_ray.errors import TooManyDigits
from sdpo_ray.records import Feedback, Message, Redaction, ToolCall, Turn
from sdpo_ray.redaction.redactor import Redactor

MAX_DIGITS = 50_000
"""Per record. The search for phone numbers in so many digits takes about 2 s; in prose of that length, milliseconds."""
_DIGIT = re.compile(r"\d")


def redact_turn(turn: Turn, redactor: Redactor) -> Turn:
    """The redacted turn; the same object if it holds no entity. Raises TooManyDigits.

    A redacted turn has no token ids and log-probs, since these would spell the entities, and `redactions` has the
    counts. Policy versions, sampling parameters and pairing keys stay.
    """
    tally = _Tally(redactor)
    redacted = {
        "messages": tuple(map(tally.message, turn.messages)),
        "tools": tally.json(turn.tools),
        "template_kwargs": tally.json(turn.template_kwargs),
        "response": tally.content(turn.response),
        "response_calls": tuple(map(tally.call, turn.response_calls)),
    }
    if not tally.counts:
        return turn
    unknown = {"prompt_ids": (), "response_ids": (), "response_logprobs": ()}
    return replace(turn, **redacted, **unknown, redactions=tally.added_to(turn.redactions))  # type: ignore[arg-type]


def redact_feedback(feedback: Feedback, redactor: Redactor) -> Feedback:
    """The redacted feedback; the same object if it holds no entity. Raises TooManyDigits."""
    tally = _Tally(redactor)
    comment, edited = tally.content(feedback.comment), tally.content(feedback.edited)
    if not tally.counts:
        return feedback
    return replace(feedback, comment=comment, edited=edited, redactions=tally.added_to(feedback.redactions))


class _Tally:
    """Redacts the texts of one record, and counts entities and digits over all of them."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._num_digits = 0
        self.counts: Counter[str] = Counter()

    def text(self, text: str) -> str:
        if not text:
            return text
        self._count_digits(text)
        redacted, found = self._redactor.redact(text)
        self.counts.update(found)
        return redacted

    def json(self, text: str) -> str:
        if not text:
            return text
        self._count_digits(text)
        redacted, found = self._redactor.redact_json(text)
        self.counts.update(found)
        return redacted

    def _count_digits(self, text: str) -> None:
        self._num_digits += len(_DIGIT.findall(text))
        if self._num_digits > MAX_DIGITS:
            raise TooManyDigits(f"more than {MAX_DIGITS} digits")

    def content(self, text: str) -> str:
        """Redact; as JSON if it looks so: tool results and some answers are JSON, whose escapes may hide entities."""
        return self.json(text) if text.lstrip()[:1] in ("{", "[") else self.text(text)

    def message(self, message: Message) -> Message:
        """The redacted message. Equal texts stay equal, so a tool's result keeps the id of its call."""
        return replace(
            message,
            content=self.content(message.content),
            tool_calls=tuple(map(self.call, message.tool_calls)),
            tool_call_id=self.text(message.tool_call_id),
        )

    def call(self, call: ToolCall) -> ToolCall:
        return replace(
            call,
            call_id=self.text(call.call_id),
            name=self.text(call.name),
            arguments=self.json(call.arguments),
        )

    def added_to(self, before: Iterable[Redaction]) -> tuple[Redaction, ...]:
        """The counts plus those of earlier redactions, by kind."""
        for redaction in before:
            self.counts[redaction.kind] += redaction.n
        return tuple(Redaction(kind=kind, n=n) for kind, n in sorted(self.counts.items()))
