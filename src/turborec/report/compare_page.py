"""The page of a comparison: differences with intervals and corrected p values, slices, what differs, the protocol."""

from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from turborec import __version__
from turborec.compare import Comparison, Difference
from turborec.report import figures, page


def write_comparison(found: Comparison, out: Path) -> None:
    """Write the page of a comparison."""
    page.write(out, compare_page(found))


def compare_page(found: Comparison) -> str:
    """The page of a comparison."""
    baseline = found.baseline
    facts = {
        "title": f"Compared with {baseline.name}",
        "version": __version__,
        "written": page.moment(datetime.now(UTC).timestamp()),
        "baseline": baseline.name,
        "part": baseline.card["part"],
        "users": len(baseline.users),
        "history": found.history,
        "ranked": baseline.card["candidates"],
        "names": [one.name for one in found.contestants],
        "values": [(metric, [found.value(one, metric) for one in found.contestants]) for metric in found.metrics],
        "differences": [(f"{one.metric}, {one.contestant}", one) for one in found.differences],
        "figures": [
            (f"{metric}: difference to {baseline.name}", _drawn(metric, list(rows), f"difference-{number}"))
            for number, (metric, rows) in enumerate(groupby(found.differences, lambda one: one.metric))
        ],
        "slices": _slices(found),
        "remarks": found.remarks,
        "folders": [(one.name, str(run.folder), one.model) for one in found.contestants for run in one.members or (one,)],
        "protocol": page.rows_of_card(baseline.card),
    }
    return page.render("compare", facts)


def _drawn(metric: str, rows: list[Difference], name: str) -> Any:
    told = "; ".join(f"{one.contestant} {one.difference:+.4f}, {one.low:+.4f} to {one.high:+.4f}" for one in rows)
    title = f"Differences in {metric} with 95 % intervals: {told}"
    return figures.differences(page.plain(title), [(one.contestant, one.difference, one.low, one.high) for one in rows], name)


def _slices(found: Comparison) -> list[dict[str, Any]]:
    """The slices by contestant: rows, and a figure for each topic."""
    shown = []
    for place, one in enumerate(found.contestants[1:] if found.slices else ()):
        rows = [(piece, piece.differences[place]) for piece in found.slices]
        metric = rows[0][1].metric
        drawn = []
        for number, (topic, some) in enumerate(groupby(rows, lambda row: row[0].topic)):
            bars = [(piece.name, d.difference, d.low, d.high) for piece, d in some]
            told = "; ".join(f"{name} {difference:+.4f}" for name, difference, *_ in bars)
            title = page.plain(f"Differences of {one.name} in {metric} by {topic}: {told}")
            drawn.append((f"{metric} by {topic}", figures.differences(title, bars, f"slices-{place}-{number}")))
        table = [(f"{piece.topic}: {piece.name} ({piece.users:,} users)", d) for piece, d in rows]
        shown.append({"name": one.name, "metric": metric, "rows": table, "figures": drawn})
    return shown
