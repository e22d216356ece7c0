"""Attribution as a PNG file: a row of cells for each answer, a cell for each token, as Figures 7 and 8 of the paper.

A character that matplotlib's font lacks is drawn as an empty square; `report.token_html` shows every character.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import MaxNLocator

from sdpo_ray.records import TokenAttribution
from sdpo_ray.report.colormap import COLOURS, NORM, TICKS, colour, hexadecimal, ink

_FONT = "DejaVu Sans Mono"
_BEYOND = "#d4d4d4"
"""Behind the cells, where an answer has ended."""
_EDGE = "#8a8a8a"
_LABEL = 36
"""Characters of a row's label."""
_READABLE = 18
"""Longest answer, in tokens, of a panel whose cells show their text."""
_CELL_TEXT = 8
"""Characters that fit such a cell."""


def write_cells(
    attributions: Sequence[TokenAttribution], path: Path, *, unrelated: Sequence[TokenAttribution] = ()
) -> None:
    """Draw the advantages of `attributions`, labelled by their follow-ups, into `path`.

    `unrelated` holds answers of `attributions`, by their id, under follow-ups of other conversations; they are drawn
    in a second panel on the right.
    """
    panels: dict[str, Sequence[TokenAttribution | None]] = {"": attributions}
    if unrelated:
        controls = {attribution.interaction_id: attribution for attribution in unrelated}
        panels = {
            "relevant follow-ups": attributions,
            "unrelated follow-ups": [controls.get(attribution.interaction_id) for attribution in attributions],
        }
    figure = Figure(figsize=(4 + 6.5 * len(panels), 1.6 + 0.34 * len(attributions)), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, shown) in zip(grid, panels.items(), strict=True):
        _cells(axes, shown)
        axes.set_title(title, fontsize=10)
    bar = figure.colorbar(
        ScalarMappable(NORM, COLOURS), ax=list(grid), orientation="horizontal", aspect=60, shrink=0.5, pad=0.02
    )
    bar.set_ticks(TICKS, labels=[f"{nats:+g}" if nats else "0" for nats in TICKS])
    bar.minorticks_off()
    bar.set_label("advantage, nats", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    figure.savefig(path, dpi=120)


def _cells(axes: Any, attributions: Sequence[TokenAttribution | None]) -> None:
    """One panel; a row without a attribution stays empty."""
    rows = [() if attribution is None else attribution.advantages for attribution in attributions]
    nats = np.full((len(rows), max(map(len, rows)) or 1), np.nan)
    for row, advantages in zip(nats, rows, strict=True):
        row[: len(advantages)] = advantages
    axes.imshow(nats, cmap=COLOURS, norm=NORM, aspect="auto", interpolation="nearest")
    axes.set_facecolor(_BEYOND)
    if nats.shape[1] <= _READABLE:
        _write_tokens(axes, attributions)
    for edge in range(1, len(rows)):
        axes.axhline(edge - 0.5, color=_EDGE, linewidth=0.8)
    axes.set_xlabel("token", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yticks(range(len(rows)), [_label(attribution) for attribution in attributions], fontsize=8, family=_FONT)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.tick_params(length=0, axis="y")
    axes.tick_params(labelsize=8, axis="x")


def _write_tokens(axes: Any, attributions: Sequence[TokenAttribution | None]) -> None:
    for row, attribution in enumerate(attributions):
        for column, (token, nats) in enumerate(
            zip(attribution.tokens, attribution.advantages, strict=True) if attribution else ()
        ):
            text = _drawable("".join(token.split()))
            axes.text(
                column,
                row,
                text if len(text) <= _CELL_TEXT else text[: _CELL_TEXT - 2] + "..",
                color=hexadecimal(ink(colour(nats))),
                family=_FONT,
                fontsize=5,
                horizontalalignment="center",
                verticalalignment="center",
                parse_math=False,
            )


def _label(attribution: TokenAttribution | None) -> str:
    if attribution is None:
        return ""
    line = " ".join(attribution.follow_up.split())
    return _drawable(line if len(line) <= _LABEL else line[: _LABEL - 3] + "...")


def _drawable(text: str) -> str:
    """`text` with an empty square for each character that the font lacks."""
    return "".join(letter if ord(letter) in _glyphs() else "\u25a1" for letter in text)


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(_FONT)).get_charmap())
