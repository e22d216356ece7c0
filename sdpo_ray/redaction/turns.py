"""Turns and feedback without what a redactor finds in them."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from sdpo_ray.errors import TooManyDigits
from sdpo_ray.records import Feedback, Message, Redaction, ToolCall, Turn
from sdpo_ray.redaction.redactor import Redactor

MAX_DIGITS = 50_000
"""Of one record: about two seconds for phone numbers alone, where prose of that length takes milliseconds."""
_DIGIT = re.compile(r"\d")


def redact_turn(turn: Turn, redactor: Redactor) -> Turn:
    """`turn` as it may be written: the same object where nothing is found in it.

    Else its token ids and log-probs are gone, which would spell what was found, and `redactions` says how much of
    what. Who answered, how it was sampled and with what it pairs stay. Raises TooManyDigits.
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
    return replace(turn, **redacted, **unknown, redactions=tally.with_those(turn.redactions))  # type: ignore[arg-type]


def redact_feedback(feedback: Feedback, redactor: Redactor) -> Feedback:
    """`feedback` as it may be written: the same object where nothing is found in it. Raises TooManyDigits."""
    tally = _Tally(redactor)
    comment, edited = tally.content(feedback.comment), tally.content(feedback.edited)
    if not tally.counts:
        return feedback
    return replace(feedback, comment=comment, edited=edited, redactions=tally.with_those(feedback.redactions))


class _Tally:
    """Counts over all texts of one record."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._num_digits = 0
        self.counts: Counter[str] = Counter()

    def text(self, text: str) -> str:
        if not text:
            return text
        self._look_at(text)
        redacted, found = self._redactor.redact(text)
        self.counts.update(found)
        return redacted

    def json(self, text: str) -> str:
        if not text:
            return text
        self._look_at(text)
        redacted, found = self._redactor.redact_json(text)
        self.counts.update(found)
        return redacted

    def _look_at(self, text: str) -> None:
        self._num_digits += len(_DIGIT.findall(text))
        if self._num_digits > MAX_DIGITS:
            raise TooManyDigits(f"more than {MAX_DIGITS} digits")

    def content(self, text: str) -> str:
        """Answers of tools, and of models that were told to, are JSON, whose escapes may hide what is to be found."""
        return self.json(text) if text.lstrip()[:1] in ("{", "[") else self.text(text)

    def message(self, message: Message) -> Message:
        """Equal texts stay equal, so that a tool's result keeps the id of its call."""
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

    def with_those(self, before: Iterable[Redaction]) -> tuple[Redaction, ...]:
        for redaction in before:
            self.counts[redaction.kind] += redaction.n
        return tuple(Redaction(kind=kind, n=n) for kind, n in sorted(self.counts.items()))
