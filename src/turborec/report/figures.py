"""Figures as SVG text for a page: drawn by matplotlib, coloured by the page's own style, so that they follow light and dark.

Nothing of matplotlib's global state is used or left changed. A figure's text is text, and what it shows is told in words.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

COLOURS = {"#010101": "--ink", "#020202": "--quiet", "#030303": "--rule", "#040404": "--first", "#050505": "--second"}
"""Stand-ins, which matplotlib draws with, and the style's names for the colours that are meant."""
INK, QUIET, RULE, FIRST, SECOND = COLOURS

DASHES = ("solid", "dashed", "dotted", "dashdot")
"""What tells apart lines of one colour."""

MOST_POINTS = 300
"""Of a curve; longer ones are averaged in stretches."""

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+\.\d{3,}")


@dataclass(frozen=True)
class Curve:
    """A line through (x, y), with a mark at each point where `marked`."""

    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    marked: bool = False


def timeline(title: str, line: Curve, name: str) -> "Markup":
    """A line over milliseconds, filled down to 0."""
    with _axes((4.3, 2.3)) as (figure, axes):
        axes.plot(line.x, line.y, color=FIRST, linewidth=1.0)
        axes.fill_between(line.x, line.y, color=FIRST, alpha=0.15, linewidth=0)
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, max(line.x, default=0) or 1)
        axes.set_xlabel("milliseconds")
        return _svg(figure, title, name)


def curves(title: str, lines: Sequence[Curve], name: str, chosen: float | None = None, zero: bool = False) -> "Markup":
    """Lines over epochs; `chosen` marks an epoch, `zero` lets the axis begin there."""
    with _axes((4.3, 2.3)) as (figure, axes):
        for line, colour in zip(lines, (SECOND, FIRST) if len(lines) > 1 else (FIRST,), strict=False):
            x, y = _thinned(np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float))
            style: dict[str, Any] = {"marker": "o", "markersize": 3.5, "clip_on": False} if line.marked else {}
            axes.plot(x, y, color=colour, linewidth=1.6 if line.marked or len(lines) == 1 else 1.0, label=line.label, **style)
        last = max(max(line.x, default=0) for line in lines)
        if chosen is not None:
            axes.axvline(chosen, color=QUIET, linewidth=1, linestyle=(0, (3, 3)))
            right = chosen < last / 2
            style = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            axes.annotate("chosen", (chosen, 0), (4 if right else -4, 4), color=QUIET, ha="left" if right else "right", **style)
        axes.margins(y=0.08)
        axes.yaxis.set_major_formatter("{x:,g}")
        if zero:
            axes.set_ylim(bottom=0)
        if len(lines) > 1:
            axes.legend(frameon=False, labelcolor=QUIET)
        axes.set_xlabel("epoch")
        axes.set_xlim(0, last * 1.03 or 1)
        axes.locator_params(axis="x", integer=True)
        return _svg(figure, title, name)


def traces(title: str, lines: Sequence[Curve], name: str, axis: str, large: bool = False) -> "Markup":
    """Lines over what `axis` says; the first stands out. A label such as `3. clip` has its number at the line's end."""
    with _axes((9.2, 4.0) if large else (4.3, 2.5)) as (figure, axes):
        for place, line in reversed(list(enumerate(lines))):
            x, y = _thinned(np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float))
            style: dict[str, Any] = {"color": SECOND, "linewidth": 1.1, "linestyle": DASHES[place % len(DASHES)]}
            if not place:
                style = {"color": FIRST, "linewidth": 1.8}
            axes.plot(x, y, marker="o" if len(x) == 1 else "", markersize=3.5, label=_short(line.label), **style)
            end: Any = {"xy": (x[-1], y[-1]), "xytext": (3, 0), "textcoords": "offset points"}
            axes.annotate(line.label.partition(".")[0], color=INK, fontsize=7.5, va="center", **end)
        axes.margins(x=0.06, y=0.08)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.set_xlabel(axis)
        if 1 < len(lines) <= len(DASHES):
            axes.legend(frameon=False, labelcolor=QUIET, reverse=True)
        return _svg(figure, title, name)


def differences(title: str, rows: Sequence[tuple[str, float, float, float]], name: str) -> "Markup":
    """Intervals of differences as bars around their means, one row each (label, mean, low, high), and a line at 0."""
    with _axes((4.3, 0.55 + 0.27 * len(rows))) as (figure, axes):
        axes.axvline(0, color=QUIET, linewidth=1)
        for place, (_, mean, low, high) in enumerate(rows):
            axes.plot([low, high], [place, place], color=FIRST, linewidth=2, solid_capstyle="butt")
            axes.plot([mean], [place], color=FIRST, marker="o", markersize=5)
        axes.set_yticks(range(len(rows)), [_short(label) for label, *_ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(visible=False, axis="y")
        return _svg(figure, title, name)


def bars(title: str, rows: Sequence[tuple[str, float, float, float]], name: str, limit: float | None = None) -> "Markup":
    """Values as bars from 0 with their intervals, one row each (label, value, low, high).

    The first one stands out or, where there is a `limit`, those beyond it.
    """
    with _axes((4.3, 0.55 + 0.27 * len(rows))) as (figure, axes):
        for place, (_, value, low, high) in enumerate(rows):
            first = value > limit if limit is not None else not place
            axes.barh([place], [value], height=0.55, color=FIRST if first else SECOND)
            axes.plot([low, high], [place, place], color=QUIET, linewidth=1.2, solid_capstyle="butt")
        if limit is not None:
            axes.axvline(limit, color=QUIET, linewidth=1)
        axes.set_yticks(range(len(rows)), [_short(label) for label, *_ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.locator_params(axis="x", nbins=5)
        axes.grid(visible=False, axis="y")
        return _svg(figure, title, name)


@contextmanager
def _axes(size: tuple[float, float]) -> "Iterator[tuple[Any, Axes]]":
    """A figure of one axes in the house's manner."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "turborec",
        "text.parse_math": False,  # a dollar in a name is a dollar
        "font.size": 8.5,
        "axes.unicode_minus": True,
        "path.simplify_threshold": 0.3,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        axes.set_facecolor("none")
        axes.grid(visible=True, color=RULE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=QUIET, length=2, width=0.8)
        axes.xaxis.label.set_color(QUIET)
        axes.yaxis.get_offset_text().set_color(QUIET)
        for side, spine in axes.spines.items():
            spine.set(visible=side in ("left", "bottom"), color=RULE)
        yield figure, axes


def _svg(figure: Any, title: str, name: str) -> "Markup":
    """SVG text with a title, without what a page has no use for; `name` sets its ids apart from other figures'."""
    from markupsafe import Markup

    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    ElementTree.register_namespace("", _SVG)
    root = ElementTree.fromstring(text.getvalue())
    for unwanted in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(unwanted)
    used = set(re.findall(r"#([\w-]+)", text.getvalue()))
    for element in root.iter():
        _tidy(element, used, name)
    width, height = (float(v) for v in root.get("viewBox", "0 0 1 1").split()[2:])
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title", "style": f"aspect-ratio: {width:g} / {height:g}"}
    named = ElementTree.Element(f"{{{_SVG}}}title", {"id": f"{name}-title"})
    named.text = title
    root.insert(0, named)
    drawn = ElementTree.tostring(root, encoding="unicode").replace("xlink:href", "href")
    for stand_in, colour in COLOURS.items():
        drawn = drawn.replace(stand_in, f"var({colour})")
    return Markup(drawn)


def _tidy(element: ElementTree.Element, used: set[str], name: str) -> None:
    """Drop ids that nothing refers to, and give the others the figure's name; shorten numbers."""
    for attribute, value in list(element.attrib.items()):
        if attribute == "id":
            element.attrib.pop("id")
            if value in used:
                element.set("id", f"{name}-{value}")
        elif attribute == _LINK:
            element.attrib.pop(_LINK)
            element.set("href", value.replace("#", f"#{name}-"))
        elif attribute == "clip-path":
            element.set(attribute, value.replace("#", f"#{name}-"))
        elif attribute in ("d", "x", "y", "transform"):
            element.set(attribute, _NUMBER.sub(lambda found: f"{float(found.group()):.2f}", value))


def _thinned(x: Any, y: Any) -> tuple[Any, Any]:
    """At most `MOST_POINTS` points: the means of stretches of like length."""
    if len(x) <= MOST_POINTS:
        return x, y
    edges = np.linspace(0, len(x), MOST_POINTS + 1).astype(int)[:-1]
    counts = np.diff([*edges, len(x)])
    return np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts


def _short(label: str) -> str:
    """A label for an axis: characters that the measuring font has, and not many; the table has it in full."""
    plain = "".join(c if c.isprintable() and ord(c) < 0x250 else "?" for c in label)
    return plain if len(plain) <= 30 else f"{plain[:14]} … {plain[-13:]}"
