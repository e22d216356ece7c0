"""The page and the pictures: everything is there, nothing of the user's is markup, colours are where they belong."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from sdpo_ray.records import TokenAttribution
from sdpo_ray.report.colormap import colour
from sdpo_ray.report.token_html import CONTINUED, cells, strongest, write_html
from sdpo_ray.report.token_png import write_cells


def attribution(name: str = "a", **changes: object) -> TokenAttribution:
    fields = {
        "interaction_id": name,
        "prompt": "What is the capital of France?",
        "follow_up": "Shorter please.",
        "tokens": ("Hey", " there", ",\n\n", "🙂", "", " Paris"),
        "advantages": (-14.0, -0.5, 0.0, 0.25, -0.125, 2.5),
        "logprobs": (-0.25, -1.5, -2.0, -3.0, -0.125, -4.0),
    }
    return TokenAttribution(**(fields | changes))  # type: ignore[arg-type]


class Page(HTMLParser):
    """What a browser would make of it: tags, attributes and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.tokens: list[dict[str, str]] = []
        self.text = ""
        self._span: dict[str, str] | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = {name: value or "" for name, value in attrs}
        if tag == "span" and "data-tip" in found:
            self._span = found | {"text": ""}
            self.tokens.append(self._span)

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self._span = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._span is not None:
            self._span["text"] += data


def test_the_page_has_every_token_with_its_numbers(tmp_path: Path):
    write_html([attribution()], tmp_path / "index.html", title="Turn a")
    page = Page(tmp_path / "index.html")
    assert [token["text"] for token in page.tokens] == ["Hey", " there", ",↵\n↵\n", "🙂", CONTINUED, " Paris"]
    for token, advantage, logprob in zip(page.tokens, attribution().advantages, attribution().logprobs, strict=True):
        assert f"A = {advantage:+.3f} nats" in token["data-tip"]
        assert f"log p(y|x) = {logprob:.3f}" in token["data-tip"]
        assert "background:#{:02x}{:02x}{:02x};".format(*colour(advantage)) in token["style"]
    assert "p(y|x,o) / p(y|x) = 12.2" in page.tokens[-1]["data-tip"]
    assert "What is the capital of France?" in page.text
    assert "Shorter please." in page.text
    assert "script" not in page.tags


def test_user_text_is_never_markup(tmp_path: Path):
    evil = "<script>alert(\"x\")</script> 'quoted' {{ 7 * 7 }} & </span>"
    write_html(
        [attribution(evil, prompt=evil, follow_up=evil, tokens=(evil, *attribution().tokens[1:]))],
        tmp_path / "index.html",
        title=evil,
    )
    page = Page(tmp_path / "index.html")
    assert "script" not in page.tags
    assert page.tokens[0]["text"] == evil
    assert page.tokens[0]["data-tip"].startswith(evil)
    assert set(page.tokens[0]) == {"style", "data-tip", "text"}
    assert page.text.count(evil) >= 5
    assert len(page.tokens) == 6


def test_an_unrelated_follow_up_is_shown_below_the_answer_it_belongs_to(tmp_path: Path):
    controls = [attribution("b", follow_up="What is 27*4?", advantages=(0.0,) * 6)]
    write_html([attribution("a"), attribution("b")], tmp_path / "index.html", title="two", unrelated=controls)
    page = Page(tmp_path / "index.html")
    assert len(page.tokens) == 18
    assert page.text.index("What is 27*4?") > page.text.rindex("Shorter please.")


def test_the_strongest_tokens_are_named_largest_first():
    assert [cell.text for cell in strongest(attribution())[:3]] == ["Hey", " Paris", " there"]
    assert cells(attribution(advantages=(-800.0, 800.0, 0.0, 0.0, 0.0, 0.0)))[0].ratio == "0"


def at_rows(path: Path, column: float) -> np.ndarray:
    """RGB, 0 to 255, down the picture at a share of its width."""
    image = imread(path)[..., :3] * 255
    return image[:, int(column * image.shape[1])]


def holds(pixels: np.ndarray, nats: float) -> bool:
    return bool((np.abs(pixels - np.array(colour(nats))).max(-1) <= 2).any())


def test_a_cell_has_the_colour_of_its_advantage(tmp_path: Path):
    flat = attribution(advantages=(-14.0,) * 6)
    write_cells([flat], tmp_path / "red.png")
    write_cells([attribution(advantages=(2.5,) * 6)], tmp_path / "blue.png")
    red, blue = at_rows(tmp_path / "red.png", 0.9), at_rows(tmp_path / "blue.png", 0.9)
    assert holds(red, -14.0)
    assert not holds(red, 2.5)
    assert holds(blue, 2.5)
    assert not holds(blue, -14.0)


def test_relevant_is_left_and_unrelated_right_even_where_a_control_is_missing(tmp_path: Path):
    relevant = [attribution("a", advantages=(-14.0,) * 6), attribution("b", advantages=(-14.0,) * 6)]
    write_cells(relevant, tmp_path / "cells.png", unrelated=[attribution("b", advantages=(2.5,) * 6)])
    image = imread(tmp_path / "cells.png")[..., :3] * 255
    left, right = np.split(image, [image.shape[1] // 2], axis=1)
    rows = {
        nats: np.flatnonzero((np.abs(half - np.array(colour(nats))).max(-1) <= 2).mean(axis=1) > 0.3)
        for nats, half in ((-14.0, left), (2.5, right))
    }
    assert len(rows[-14.0]) > 1.7 * len(rows[2.5]) > 0
    assert rows[2.5].min() > rows[-14.0].mean()


@pytest.mark.parametrize(
    "hostile",
    [
        {"tokens": ("$x_{$", " \\frac{", "\t\r\x00", "漢字", "\u202eabc", "\n" * 40), "follow_up": "$$ \\bad{ 🙂"},
        {"tokens": ("x" * 1000, *attribution().tokens[1:]), "prompt": "y " * 50_000, "follow_up": "z" * 100_000},
        {"tokens": (), "advantages": (), "logprobs": (), "follow_up": ""},
        {"tokens": ("\n",) * 5000, "advantages": (0.5,) * 5000, "logprobs": (-1.0,) * 5000},
    ],
    ids=["markup", "long", "nothing", "lines"],
)
def test_nothing_that_is_said_keeps_the_pictures_from_being_drawn(tmp_path: Path, hostile: dict[str, object]):
    shown = [attribution(**hostile)]
    write_cells(shown, tmp_path / "cells.png", unrelated=shown)
    write_html(shown, tmp_path / "index.html", title="hostile")
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())
