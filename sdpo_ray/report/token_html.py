"""Attribution as one HTML file: answers on coloured backgrounds, numbers on hover, no script.

User text is escaped. Answers have a white background in the light and the dark scheme alike, since white means zero.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from sdpo_ray.records import TokenAttribution
from sdpo_ray.report.colormap import TICKS, colour, hexadecimal, ink

CONTINUED = "\u00b7"
"""Shown for a token without text of its own: it continues the character of the token before."""
_STRONGEST = 8
"""Tokens in the table below an answer."""
_LARGEST_EXPONENT = 700.0
_TEMPLATE = Path(__file__).with_name("token_page.jinja")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCell:
    """One token of the page; all values are text. Made by `cells`; read by the template and `explain`."""

    text: str
    advantage: str
    logprob: str
    ratio: str
    background: str
    ink: str

    @property
    def tooltip(self) -> str:
        """The token with its numbers, a line each."""
        token = self.text.replace("\n", "")
        return f"{token}\nA = {self.advantage} nats\nlog p(y|x) = {self.logprob}\np(y|x,o) / p(y|x) = {self.ratio}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tick:
    text: str
    background: str
    ink: str


def write_html(
    attributions: Sequence[TokenAttribution], path: Path, *, title: str, unrelated: Sequence[TokenAttribution] = ()
) -> None:
    """Write the page to `path`.

    `unrelated` holds answers of `attributions`, by their id, under follow-ups of other conversations.
    """
    controls = {attribution.interaction_id: attribution for attribution in unrelated}
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        _TEMPLATE.read_text(encoding="utf-8")
    )
    page = template.render(
        title=title,
        pairs=[(attribution, controls.get(attribution.interaction_id)) for attribution in attributions],
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


def cells(attribution: TokenAttribution) -> list[TokenCell]:
    """Cells of an answer's tokens, in order."""
    return [
        _cell(token, advantage, logprob)
        for token, advantage, logprob in zip(
            attribution.tokens, attribution.advantages, attribution.logprobs, strict=True
        )
    ]


def strongest(attribution: TokenAttribution) -> list[TokenCell]:
    """Cells of the tokens with the largest |A|, largest first."""
    by_size = sorted(range(len(attribution.tokens)), key=lambda index: -abs(attribution.advantages[index]))
    found = cells(attribution)
    return [found[index] for index in by_size[:_STRONGEST]]


def summary(attribution: TokenAttribution) -> str:
    """One line: the number of tokens, their mean |A|, and their least and largest A."""
    if not attribution.tokens:
        return "no tokens"
    mean = sum(map(abs, attribution.advantages)) / len(attribution.advantages)
    return (
        f"{len(attribution.tokens)} tokens, mean |A| {mean:.3f} nats, from {min(attribution.advantages):+.2f} "
        f"to {max(attribution.advantages):+.2f}"
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
    background = colour(nats)
    return hexadecimal(background), hexadecimal(ink(background))
