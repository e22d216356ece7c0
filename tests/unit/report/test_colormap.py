import itertools

import pytest

from sdpo_ray.report.colormap import NORM, SATURATION, colour, contrast, hexadecimal, ink, luminance

NATS = [0.0, 0.01, 0.05, 0.1, 0.3, 1.0, 3.0, 7.0, 15.0]


def test_the_scale_is_symmetric_monotone_and_full_at_saturation():
    assert [NORM(-nats) for nats in NATS] == pytest.approx([1 - NORM(nats) for nats in NATS])
    assert all(a < b for a, b in itertools.pairwise(map(NORM, NATS)))
    assert NORM(0.0) == 0.5
    assert NORM(SATURATION) == NORM(100.0) == 1.0
    assert NORM(-SATURATION) == NORM(-100.0) == 0.0


@pytest.mark.parametrize("sign", [1, -1])
def test_colours_grow_darker_with_the_size_of_the_advantage(sign: int):
    shades = [luminance(colour(sign * nats)) for nats in NATS]
    assert all(a > b for a, b in itertools.pairwise(shades))


def test_zero_is_white_small_is_near_white_and_the_sign_is_the_hue():
    assert colour(0.0) == (255, 255, 255)
    for nats in (0.3, 1.0, 3.0, 15.0):
        red, _, blue = colour(nats)
        assert blue > red + 10
        red, _, blue = colour(-nats)
        assert red > blue + 10
    for nats in (0.05, -0.05):
        assert min(colour(nats)) > 240
    for nats in (15.0, -15.0):
        assert luminance(colour(nats)) < 0.05


def test_text_reads_on_every_colour():
    for place in range(1001):
        background = colour(NORM.inverse(place / 1000))
        assert contrast(ink(background), background) >= 4.5


def test_contrast_is_that_of_wcag():
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21.0)
    assert contrast((255, 255, 255), (118, 118, 118)) == pytest.approx(4.54, abs=0.005)


def test_hexadecimal_is_what_css_reads():
    assert hexadecimal((255, 0, 10)) == "#ff000a"
