"""Pages from templates: whatever comes from data is escaped, marks that would turn text around are written out."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turborec.files import write_whole
from turborec.shown import visible

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_BYTES = 300_000
"""What a page weighs at most; a test says so."""


def render(template: str, facts: dict[str, Any]) -> str:
    """The page that `template`.html.j2 makes of `facts`; a fact that it lacks is an error."""
    return _environment().get_template(f"{template}.html.j2").render(**facts)


def write(path: Path, page: str) -> None:
    """Write a page, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)


def plain(value: Any) -> Any:
    """Text with its unseen characters written as their codes; anything but text as it is."""
    from markupsafe import Markup

    if isinstance(value, str) and not isinstance(value, Markup):
        return visible(value)
    return value


def rows_of(tree: dict[str, Any], path: str = "") -> list[tuple[str, str]]:
    """A tree as dotted names and values in words, for a table."""
    rows = []
    for key, value in tree.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict) and value:
            rows += rows_of(value, name)
        else:
            rows.append((name, words(value)))
    return rows


def rows_of_card(card: dict[str, Any]) -> list[tuple[str, str]]:
    """A protocol card as rows; metrics that have one definition share a row."""
    alike: dict[str, list[str]] = {}
    for name, text in card.get("metrics", {}).items():
        alike.setdefault(text, []).append(name)
    return rows_of({k: v for k, v in card.items() if k != "metrics"}) + [
        (", ".join(names), text) for text, names in alike.items()
    ]


def words(value: Any) -> str:
    """A fact of a card as it is read."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(words(one) for one in value) or "–"
    return json.dumps(value) if isinstance(value, dict) else str(value)


def moment(value: float | str | None) -> str:
    """A time in UTC to the minute, from seconds or from ISO text; empty where it is unknown."""
    try:
        when = datetime.fromtimestamp(value, UTC) if isinstance(value, int | float) else datetime.fromisoformat(str(value))
    except (ValueError, OSError, OverflowError):
        return ""
    return when.strftime("%Y-%m-%d %H:%M UTC")


def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "value": lambda x: f"{x:.4f}",
        "signed": lambda x: f"{x:+.4f}".replace("-", "−"),
        "p": _p,
        "breakable": _breakable,
    }
    environment.filters |= filters
    return environment


def _breakable(name: str) -> Any:
    """A dotted name that may be broken after its dots and dashes."""
    from markupsafe import Markup, escape

    return Markup(re.sub("([._])", r"\1<wbr>", str(escape(plain(name)))))


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")
