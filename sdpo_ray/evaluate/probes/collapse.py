"""Collapse: the share of answers that loop, were cut off or are empty, and the growth of their length.

Needs neither a judge nor right answers, so it applies to any prompts.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from sdpo_ray.evaluate.client import Answers
from sdpo_ray.evaluate.probe import Probe, ProbeInput, score
from sdpo_ray.evaluate.statistics import proportion, ratio_of_means
from sdpo_ray.records import FinishReason, Score, ScoreSpec

MAX_WORD_PERIOD = 32
"""Longest phrase, in words, whose immediate repetition is a loop."""
MIN_LOOPED_CHARACTERS = 24
MAX_CHARACTER_PERIOD = 8
MIN_WORDS_FOR_VARIETY = 20
"""Shorter texts are not measured by their variety."""
MIN_VARIETY = 0.5
"""Share of distinct 4-word phrases under which a text counts as repetitive."""

_WORD = re.compile(r"\w+")
_RULE = re.compile(r"^[-=_*|:+~\s]+$", re.MULTILINE)
"""Rules and table heads of Markdown, which repeat one character and are no loop."""


def collapse(ours: Answers, base: Answers, *, confidence: float) -> tuple[Score, ...]:
    """Scores `collapse.length_ratio` (mean tokens, ours over the base's), and the shares of our answers that
    repeat themselves (`collapse.repetition`), were cut off (`collapse.truncated`) or have no visible character
    (`collapse.empty`).
    """
    n = len(ours)
    lengths = ratio_of_means([a.num_tokens for a in ours], [a.num_tokens for a in base], confidence)
    repeating = sum(repeats_itself(answer.text) for answer in ours)
    truncated = sum(answer.finish_reason is FinishReason.LENGTH for answer in ours)
    empty = sum(not answer.text.strip() for answer in ours)
    return (
        score("collapse.length_ratio", lengths),
        score("collapse.repetition", proportion(repeating, n, confidence)),
        score("collapse.truncated", proportion(truncated, n, confidence)),
        score("collapse.empty", proportion(empty, n, confidence)),
    )


def repeats_itself(text: str) -> bool:
    """Whether a text loops: one word four times in a row, one phrase three times in a row, one short string over
    `MIN_LOOPED_CHARACTERS` characters, or few distinct phrases in a long text.
    """
    words = _WORD.findall(text.lower())
    characters = "".join(_RULE.sub("", text).split())
    return (
        _longest_loop(words, period=1) >= 4
        or any(_longest_loop(words, period=p) >= 3 * p for p in range(2, min(MAX_WORD_PERIOD, len(words) // 3) + 1))
        or any(_longest_loop(characters, period=p) >= MIN_LOOPED_CHARACTERS for p in range(1, MAX_CHARACTER_PERIOD + 1))
        or (len(words) >= MIN_WORDS_FOR_VARIETY and _variety(words) < MIN_VARIETY)
    )


def measure(given: ProbeInput) -> tuple[Score, ...]:
    """Collapse of the candidate against the base."""
    return collapse(given.candidate, given.base, confidence=given.confidence)


def _longest_loop(items: Sequence[str], *, period: int) -> int:
    """Length of the longest stretch in which every item equals the one `period` before it."""
    breaks = [-1, *(i for i in range(len(items) - period) if items[i] != items[i + period]), len(items) - period]
    longest = max((b - a - 1 for a, b in pairwise(breaks)), default=0)
    return longest + period if longest > 0 else 0


def _variety(words: Sequence[str]) -> float:
    phrases = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return len(set(phrases)) / len(phrases)


PROBE = Probe(
    name="collapse",
    scores=(
        ScoreSpec(name="collapse.length_ratio", direction="max", setting="max_length_ratio"),
        ScoreSpec(name="collapse.repetition", direction="max", setting="max_repetition"),
        ScoreSpec(name="collapse.truncated"),
        # A short answer may be a user's taste; an empty one is a failure.
        ScoreSpec(name="collapse.empty", direction="max", bound=0.02),
    ),
    run=measure,
)
