"""Four independent attributes of an answer's style: writes answers in a style, and measures the style of a text.

`answer` writes any of the 24 styles; `style_of` measures the style of any text.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdpo_ray.simulate.world import Question


class Length(StrEnum):
    """Length of an answer."""

    TERSE = "terse"
    """At most `TERSE_WORDS` words: no sentence around the answer."""
    SENTENCE = "sentence"
    DETAIL = "detail"
    """Two sentences or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """The style of one answer. Made by `style_of` and by the corpus; read by `users` and `answer`."""

    length: Length
    filler: bool
    """Pleasantries: "Great question! ... I hope this helps!"."""
    emoji: bool
    bold: bool


STYLES = tuple(
    Style(length=length, filler=filler, emoji=emoji, bold=bold)
    for length in Length
    for filler in (False, True)
    for emoji in (False, True)
    for bold in (False, True)
)

VARIANTS = 3
"""Number of wordings of each filler, emoji and detail; `answer` takes one of them by number."""

TERSE_WORDS = 3

_OPENERS = ("Great question!", "Good question!", "Happy to help!")
_CLOSERS = ("I hope this helps!", "Let me know if you need more!", "Feel free to ask more!")
_EMOJI = ("😊", "🎉", "✨")

_FILLER = re.compile(
    r"(?:great|good|nice|excellent|what an? \w+) question|happy to help|glad to help|hope (?:this|that|it) helps"
    r"|let me know if|feel free to|of course!|certainly!|sure thing",
    re.IGNORECASE,
)
_PICTURE = re.compile("[\u2600-\u27bf\u2b50\u2b55\U0001f000-\U0001faff]")
_BOLD = re.compile(r"\*\*[^*\n]+\*\*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")


def answer(question: "Question", style: Style, *, variant: int = 0) -> str:
    """Return the right answer to `question` in `style`, in one of `VARIANTS` wordings.

    The order is fixed: opener, body, closer, emoji; bold marks the answer word alone.
    """
    fact = question.fact
    terse = style.length is Length.TERSE
    word = fact.answer[0].upper() + fact.answer[1:] if terse else fact.answer
    if style.bold:
        word = f"**{word}**"
    parts = [f"{word}." if terse else fact.kind.statement.format(subject=fact.subject, answer=word)]
    if style.length is Length.DETAIL:
        parts.append(fact.kind.details[variant].format(subject=fact.subject))
    if style.filler:
        parts = [_OPENERS[variant], *parts, _CLOSERS[variant]]
    if style.emoji:
        parts.append(_EMOJI[variant])
    return " ".join(parts)


def style_of(text: str) -> Style:
    """Return the style of `text`, measured without the question.

    Sentences of filler, pictures and bold marks do not count towards the length.
    """
    plain = _PICTURE.sub(" ", text).replace("**", "")
    sentences = [s for s in _SENTENCE_END.split(plain) if _WORD.search(s) and not _FILLER.search(s)]
    if len(sentences) > 1:
        length = Length.DETAIL
    elif sum(len(_WORD.findall(s)) for s in sentences) > TERSE_WORDS:
        length = Length.SENTENCE
    else:
        length = Length.TERSE
    return Style(
        length=length,
        filler=_FILLER.search(text) is not None,
        emoji=_PICTURE.search(text) is not None,
        bold=_BOLD.search(text) is not None,
    )
