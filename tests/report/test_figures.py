"""Figures are plain SVG that the page colours, told in words, and nothing of theirs is left behind."""

import re
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest

from turborec.report.figures import MOST_POINTS, Curve, curves, differences

SVG = "{http://www.w3.org/2000/svg}"


def drawn(**settings):
    return str(
        curves("Loss by epoch", [Curve([0, 1, 2], [3.0, 2.0, 1.5]), Curve([1, 2], [2.5, 1.7], "x", True)], "loss", **settings)
    )


def test_a_figure_says_what_it_is_and_needs_nothing_else():
    text = drawn(chosen=2)
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img" and root.get("aria-labelledby") == "loss-title"
    title = root.find(f"{SVG}title")
    assert title.text == "Loss by epoch" and title.get("id") == "loss-title"
    assert "chosen" in text and root.get("viewBox")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|<script|<image|metadata", text)


def test_colours_are_the_pages():
    colours = set(re.findall(r"(?:stroke|fill): ([^;\"]+)", drawn()))
    assert colours <= {"none", "var(--ink)", "var(--quiet)", "var(--rule)", "var(--first)", "var(--second)", "#ffffff"}
    assert {"var(--first)", "var(--second)"} <= colours


def test_ids_of_two_figures_differ_and_every_reference_is_met():
    first, second = (str(curves("t", [Curve([1, 2, 3], [1.0, 2.0, 3.0], marked=True)], name)) for name in ("a", "b"))
    ids = [re.findall(r' id="([^"]+)"', text) for text in (first, second)]
    assert ids[0] and not set(ids[0]) & set(ids[1]) and len(set(ids[0])) == len(ids[0])
    assert set(re.findall(r"#([\w-]+)", first)) <= set(ids[0])


def test_the_same_figure_is_the_same_text_and_settings_stay_as_they_were():
    before = dict(mpl.rcParams)
    assert drawn() == drawn()
    assert dict(mpl.rcParams) == before


def test_a_long_curve_is_averaged_to_few_points():
    steps = np.arange(50_000)
    text = str(curves("t", [Curve(steps / 100, np.sin(steps / 900))], "long"))
    assert len(text) < 25_000
    points = max(len(re.findall("[ML]", path)) for path in re.findall(r' d="([^"]+)"', text))
    assert points <= MOST_POINTS


@pytest.mark.parametrize("y", [[float("nan")] * 3, [1.0, float("nan"), 2.0], [5.0, 5.0, 5.0], [0.0, 0.0, 0.0]])
def test_any_numbers_can_be_drawn(y):
    assert "<svg" in curves("t", [Curve([1, 2, 3], y)], "odd", chosen=1, zero=True)


def test_names_are_drawn_as_they_are_written():
    text = str(
        differences("t", [("cost $5$ </svg><script>", 0.1, 0.0, 0.2), ("日本語", -0.1, -0.2, 0.0), ("x" * 99, 0, 0, 0)], "d")
    )
    assert "cost $5$ &lt;/svg&gt;&lt;script&gt;" in text and "<script" not in text
    assert "???" in text and "x" * 40 not in text
