"""The signal as one HTML file: answers on coloured backgrounds, numbers on hover, without a script.

User text is escaped. Answers lie on a white sheet in the light and the dark scheme alike, since white means zero.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from sdpo_ray.records import TokenSignal
from sdpo_ray.report.colormap import TICKS, colour, hexadecimal, ink, strength

CONTINUED = "\u00b7"
"""Stands for a token whose character the token before it has shown."""
_STRONGEST = 8
_LARGEST_EXPONENT = 700.0
_TEMPLATE = Path(__file__).with_name("token_page.jinja")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCell:
    """One token as it is shown; all values are text."""

    text: str
    advantage: str
    logprob: str
    ratio: str
    background: str
    ink: str

    @property
    def facts(self) -> str:
        token = self.text.replace("\n", "")
        return f"{token}\nA = {self.advantage} nats\nlog p(y|x) = {self.logprob}\np(y|x,o) / p(y|x) = {self.ratio}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tick:
    text: str
    background: str
    ink: str


def write_html(
    signals: Sequence[TokenSignal], path: Path, *, title: str, unrelated: Sequence[TokenSignal] = ()
) -> None:
    """Write the page. `unrelated` has answers of `signals`, by their id, under follow-ups of no concern to them."""
    controls = {signal.interaction_id: signal for signal in unrelated}
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        _TEMPLATE.read_text(encoding="utf-8")
    )
    page = template.render(
        title=title,
        pairs=[(signal, controls.get(signal.interaction_id)) for signal in signals],
        cells=cells,
        strongest=strongest,
        summary=summary,
        continued=CONTINUED,
        ticks=[
            _Tick(text=f"{nats:+g}" if nats else "0", background=back, ink=text)
            for nats in TICKS
            for back, text in [_colours(nats)]
        ],
    )
    path.write_text(page, encoding="utf-8")


def cells(signal: TokenSignal) -> list[TokenCell]:
    """The tokens of an answer, in order."""
    return [
        _cell(token, advantage, logprob)
        for token, advantage, logprob in zip(signal.tokens, signal.advantages, signal.logprobs, strict=True)
    ]


def strongest(signal: TokenSignal) -> list[TokenCell]:
    """The tokens with the largest |A|, largest first."""
    by_size = sorted(range(len(signal.tokens)), key=lambda index: -abs(signal.advantages[index]))
    found = cells(signal)
    return [found[index] for index in by_size[:_STRONGEST]]


def summary(signal: TokenSignal) -> str:
    """One line: how many tokens, and how strongly they are moved."""
    if not signal.tokens:
        return "no tokens"
    mean = sum(map(abs, signal.advantages)) / len(signal.advantages)
    return (
        f"{len(signal.tokens)} tokens, mean |A| {mean:.3f} nats, from {min(signal.advantages):+.2f} "
        f"to {max(signal.advantages):+.2f}"
    )


def _cell(token: str, advantage: float, logprob: float) -> TokenCell:
    background, text = _colours(advantage)
    return TokenCell(
        text=(token or CONTINUED).replace("\n", "\u21b5\n"),
        advantage=f"{advantage:+.3f}",
        logprob=f"{logprob:.3f}",
        ratio=f"{math.exp(min(advantage, _LARGEST_EXPONENT)):.3g}",
        background=background,
        ink=text,
    )


def _colours(nats: float) -> tuple[str, str]:
    background = colour(strength(nats))
    return hexadecimal(background), hexadecimal(ink(background))
