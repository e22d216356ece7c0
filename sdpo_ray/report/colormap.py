"""Colours of an advantage: blue where a token is reinforced, red where it is penalised, white at zero.

Advantages reach -15 nats while most are within a tenth of one, so the scale is asinh: proportional near zero,
logarithmic far from it. Both signs share one scale: equal advantages are equally strong.
"""

from typing import TypeAlias

from matplotlib import colormaps
from matplotlib.colors import AsinhNorm, LinearSegmentedColormap, to_hex

SATURATION = 15.0
"""Nats from which on no colour is stronger; the paper's figures end there too."""
TICKS = (-15.0, -5.0, -2.0, -0.5, 0.0, 0.5, 2.0, 5.0, 15.0)
"""Advantages, in nats, that a legend names."""
NORM = AsinhNorm(linear_width=0.5, vmin=-SATURATION, vmax=SATURATION, clip=True)
"""Place of an advantage, in nats, on the scale from 0 to 1."""

Rgb: TypeAlias = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

_STOPS = colormaps["RdBu"].resampled(11)(range(11))
# ColorBrewer's middle is a light grey; zero has to be the colour of the page.
_STOPS[5] = 1.0
COLOURS = LinearSegmentedColormap.from_list("RdBu, white in the middle", _STOPS, N=2**12 + 1)


def colour(nats: float) -> Rgb:
    """Colour of an advantage."""
    red, green, blue, _ = COLOURS(float(NORM(nats)), bytes=True)
    return int(red), int(green), int(blue)


def ink(background: Rgb) -> Rgb:
    """Black or white, the one with the higher contrast, which is never under 4.58."""
    return max(((0, 0, 0), (255, 255, 255)), key=lambda text: contrast(text, background))


def contrast(a: Rgb, b: Rgb) -> float:
    """Contrast ratio of WCAG 2, from 1 to 21."""
    darker, lighter = sorted((luminance(a), luminance(b)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(rgb: Rgb) -> float:
    """Relative luminance of WCAG 2, from 0 to 1."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (each / 255 for each in rgb)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def hexadecimal(rgb: Rgb) -> str:
    """`#rrggbb`."""
    return str(to_hex([each / 255 for each in rgb]))
