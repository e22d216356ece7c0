"""The signal as PNG files: a row of cells an answer, or the answer's words on coloured backgrounds.

Characters that matplotlib's own font has not got show as an empty square; the page has them all.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from sdpo_ray.records import TokenSignal
from sdpo_ray.report.colormap import TICKS, colour, hexadecimal, ink, strength
from sdpo_ray.report.token_html import CONTINUED

_FONT = "DejaVu Sans Mono"
_COLUMNS = 96
"""Characters a line of `write_words`."""
_MARGIN = 0.25
"""Inches."""
_SAID_LINES = 12
_ANSWER_LINES = 300
"""Longer answers are cut: matplotlib draws no picture higher than 65,536 pixels."""
_POINTS = 10.0
_ADVANCE = 0.602
"""Width of a character of the font, in its size."""
_LINE = 1.7
"""Height of a line, in the font's size."""
_BEYOND = "#d4d4d4"
"""Behind the cells: an answer has ended."""
_EDGE = "#8a8a8a"
_LABEL = 36
"""Characters of a row's label."""
_NEW_LINE = "\u21b5"


def write_cells(signals: Sequence[TokenSignal], path: Path, *, unrelated: Sequence[TokenSignal] = ()) -> None:
    """A row of cells an answer, a cell a token, as Figures 7 and 8 of the paper.

    `unrelated` has answers of `signals`, by their id, under follow-ups of no concern to them: they are to the right.
    """
    panels: dict[str, Sequence[TokenSignal | None]] = {"": signals}
    if unrelated:
        controls = {signal.interaction_id: signal for signal in unrelated}
        panels = {
            "relevant follow-ups": signals,
            "unrelated follow-ups": [controls.get(signal.interaction_id) for signal in signals],
        }
    figure = Figure(figsize=(4 + 6.5 * len(panels), 1.6 + 0.34 * len(signals)), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, shown) in zip(grid, panels.items(), strict=True):
        _cells(axes, shown)
        axes.set_title(title, fontsize=10)
    _colour_bar(figure, ax=list(grid), aspect=60, shrink=0.5, pad=0.02)
    figure.savefig(path, dpi=120)


def write_words(signals: Sequence[TokenSignal], path: Path) -> None:
    """Each answer's words on the colours of their advantages, as Figure 2 of the paper, under what the user said."""
    lines: list[list[_Piece]] = []
    for before, signal in zip([None, *signals], signals, strict=False):
        if before is None or signal.prompt != before.prompt:
            lines += _said("user", signal.prompt)
        lines += [*_said("next", signal.follow_up.strip() or "(nothing)"), [], *_answer(signal), []]
    width, height = _COLUMNS * _POINTS * _ADVANCE / 72, len(lines) * _POINTS * _LINE / 72
    wide, high = width + 2 * _MARGIN, height + 4 * _MARGIN
    figure = Figure(figsize=(wide, high))
    # Inches, not shares, so that the letters fill their cells exactly.
    axes = figure.add_axes((_MARGIN / wide, 3 * _MARGIN / high, width / wide, height / high))
    axes.set(xlim=(0, _COLUMNS), ylim=(len(lines), 0))
    axes.axis("off")
    for row, line in enumerate(lines):
        for piece in line:
            _write(axes, row, piece)
    _colour_bar(figure, cax=figure.add_axes((0.2, 2.4 * _MARGIN / high, 0.6, 0.4 * _MARGIN / high)))
    figure.savefig(path, dpi=120)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Characters of one line that share a background."""

    column: int
    text: str
    nats: float | None
    """None for what the user said."""
    bold: bool = False


def _said(name: str, text: str) -> list[list[_Piece]]:
    indent = len(name) + 2
    lines = [[_Piece(indent, line, None)] for line in _wrapped(text, _COLUMNS - indent)]
    return [[_Piece(0, name, None, bold=True), *(lines[0] if lines else [])], *lines[1:]]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text[: _SAID_LINES * width], width, max_lines=_SAID_LINES, placeholder=" ...")


def _answer(signal: TokenSignal) -> list[list[_Piece]]:
    """A token that does not fit its line begins the next; one longer than a line is cut."""
    lines: list[list[_Piece]] = [[]]
    column = 0
    for token, nats in zip(signal.tokens, signal.advantages, strict=True):
        for number, part in enumerate((token or CONTINUED).replace("\n", f"{_NEW_LINE}\n").split("\n")):
            if number:
                lines.append([])
                column = 0
            for start in range(0, len(part), _COLUMNS):
                piece = part[start : start + _COLUMNS]
                if column + len(piece) > _COLUMNS:
                    lines.append([])
                    column = 0
                lines[-1].append(_Piece(column, piece, nats))
                column += len(piece)
    return lines if len(lines) <= _ANSWER_LINES else [*lines[:_ANSWER_LINES], [_Piece(0, "...", None)]]


def _write(axes: Any, row: int, piece: _Piece) -> None:
    text = "black"
    if piece.nats is not None:
        background = colour(strength(piece.nats))
        text = hexadecimal(ink(background))
        axes.add_patch(Rectangle((piece.column, row + 0.05), len(piece.text), 0.9, color=hexadecimal(background), lw=0))
    axes.text(
        piece.column,
        row + 0.5,
        _drawable(piece.text),
        color=text,
        family=_FONT,
        fontsize=_POINTS,
        weight="bold" if piece.bold else "normal",
        verticalalignment="center_baseline",
        parse_math=False,
    )


def _cells(axes: Any, signals: Sequence[TokenSignal | None]) -> None:
    """One panel; a row without a signal stays empty."""
    rows = [() if signal is None else signal.advantages for signal in signals]
    longest = max(map(len, rows)) or 1
    axes.imshow(
        [[(*colour(strength(nats)), 255) for nats in row] + [(0, 0, 0, 0)] * (longest - len(row)) for row in rows],
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_facecolor(_BEYOND)
    for edge in range(1, len(rows)):
        axes.axhline(edge - 0.5, color=_EDGE, linewidth=0.8)
    axes.set_xlabel("token", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yticks(range(len(rows)), [_label(signal) for signal in signals], fontsize=8, family=_FONT)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.tick_params(length=0, axis="y")
    axes.tick_params(labelsize=8, axis="x")


def _label(signal: TokenSignal | None) -> str:
    if signal is None:
        return ""
    line = " ".join(signal.follow_up.split())
    return _drawable(line if len(line) <= _LABEL else line[: _LABEL - 3] + "...")


def _colour_bar(figure: Any, **place: Any) -> None:
    """A scale of strengths, named by the advantages that they stand for."""
    steps = 256
    levels = [1 - 2 * step / (steps - 1) for step in range(steps)]
    scale = ScalarMappable(Normalize(-1, 1), ListedColormap([hexadecimal(colour(level)) for level in reversed(levels)]))
    bar = figure.colorbar(scale, orientation="horizontal", **place)
    bar.set_ticks([strength(nats) for nats in TICKS], labels=[f"{nats:+g}" if nats else "0" for nats in TICKS])
    bar.set_label("advantage, nats", fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _drawable(text: str) -> str:
    """`text` with an empty square for each character that the font has not got."""
    return "".join(letter if ord(letter) in _glyphs() or letter == "\n" else "\u25a1" for letter in text)


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(_FONT)).get_charmap())
