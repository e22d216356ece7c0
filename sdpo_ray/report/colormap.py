"""The colours of an advantage: blue where a token is reinforced, red where it is penalised, white where it is left.

Advantages reach -15 nats while most are within a tenth of one, so strength grows with asinh: proportional near zero,
logarithmic far from it. Both signs share one scale: equal advantages are equally strong.
"""

import math

SATURATION = 15.0
"""Nats from which on no colour is stronger; the paper's figures end there too."""
TICKS = (-15.0, -5.0, -2.0, -0.5, 0.0, 0.5, 2.0, 5.0, 15.0)
"""Advantages, in nats, that a legend names."""
_LINEAR = 0.5
"""Nats around zero where strength is near proportional."""

_Rgb = tuple[int, int, int]
_RED: tuple[_Rgb, ...] = (
    (255, 255, 255), (253, 219, 199), (244, 165, 130), (214, 96, 77), (178, 24, 43), (103, 0, 31),
)  # fmt: skip
_BLUE: tuple[_Rgb, ...] = (
    (255, 255, 255), (209, 229, 240), (146, 197, 222), (67, 147, 195), (33, 102, 172), (5, 48, 97),
)  # fmt: skip


def strength(nats: float) -> float:
    """From -1, strongest red, over 0, white, to 1, strongest blue."""
    grown = math.asinh(nats / _LINEAR) / math.asinh(SATURATION / _LINEAR)
    return max(-1.0, min(1.0, grown))


def colour(strength: float) -> _Rgb:
    """Red, green and blue, 0 to 255, of a strength in [-1, 1]."""
    stops = _BLUE if strength >= 0 else _RED
    place = abs(strength) * (len(stops) - 1)
    index = min(int(place), len(stops) - 2)
    share = place - index
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(stops[index], stops[index + 1], strict=True))
    return red, green, blue


def ink(background: _Rgb) -> _Rgb:
    """Black or white, whichever reads better: the contrast is never under 4.58."""
    return max(((0, 0, 0), (255, 255, 255)), key=lambda text: contrast(text, background))


def contrast(a: _Rgb, b: _Rgb) -> float:
    """Contrast ratio of WCAG 2, from 1 to 21."""
    darker, lighter = sorted((luminance(a), luminance(b)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(rgb: _Rgb) -> float:
    """Relative luminance of WCAG 2, from 0 to 1."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (each / 255 for each in rgb)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def hexadecimal(rgb: _Rgb) -> str:
    """As CSS and matplotlib write it: `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)
