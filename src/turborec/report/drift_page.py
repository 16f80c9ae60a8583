"""The page of a check for drift: the verdict, what the model has lost and why, and every statistic by period."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from turborec import __version__
from turborec.checkup import SAYS, Checkup
from turborec.drift.attribution import CAUSES
from turborec.report import figures, page

SHOWN = 12
"""Ratings or categories of a table: those whose shares have changed by most."""

TITLES = {"none": "nothing is shown", "warning": "the data have moved", "drift": "the model has lost"}


def write_checkup(found: Checkup, out: Path) -> None:
    """Write the page of a check."""
    page.write(out, checkup_page(found))


def checkup_page(found: Checkup) -> str:
    """The page of a check."""
    names = [name.split(" to ")[0] for name in found.plan.names]
    every = found.plan.periods.names
    facts = {
        "title": f"Check for drift: {TITLES[found.verdict]}",
        "version": __version__,
        "written": page.moment(datetime.now(UTC).timestamp()),
        "verdict": found.verdict,
        "says": SAYS[found.verdict],
        "sentences": found.sentences(),
        "names": names,
        "rows": found.rows(),
        "figures": _figures(found, names),
        "metric": found.metric,
        "before": found.ranked[0].value if found.ranked else None,
        "losses": list(zip(names, found.ranked[1:], found.losses, strict=True)) if found.losses else [],
        "causes": CAUSES,
        "reference": f"{every[found.plan.reference[0]].split(' to ')[0]} to {every[found.plan.reference[-1]].split(' to ')[1]}",
        "mixes": [(mix.about, mix.largest(SHOWN), len(mix.names)) for mix in found.mixes],
        "remarks": found.facts["remarks"],
        "facts": page.rows_of(
            {
                "periods of the reference": len(found.plan.reference),
                "events by period": found.counted.events[found.plan.current].tolist(),
                "users by period": found.counted.users[found.plan.current].tolist(),
                **{name.replace("_", " "): value for name, value in found.facts.items() if name != "remarks"},
            }
        ),
    }
    return page.render("drift", facts)


def _figures(found: Checkup, names: list[str]) -> list[tuple[str, Any]]:
    """How far beyond its threshold each statistic is, and the metric by period."""
    data = found.data
    share = data.values / np.maximum(data.thresholds, 1e-12)
    told = "; ".join(f"{s.name} {v.max():.2f}" for s, v in zip(data.statistics, share, strict=True))
    title = page.plain(f"The largest value of each statistic as a share of its threshold: {told}")
    rows = [(s.name, float(v.max()), float(v.min()), float(v.max())) for s, v in zip(data.statistics, share, strict=True)]
    drawn = [("Largest value as a share of the threshold; drift from 1 on", figures.bars(title, rows, "shares", limit=1.0))]
    if found.losses:
        told = "; ".join(f"{name} {loss.value:+.4f}" for name, loss in zip(names, found.losses, strict=True))
        rows = [(name, loss.value, loss.low, loss.high) for name, loss in zip(names, found.losses, strict=True)]
        title = page.plain(f"Loss of {found.metric} by period with its interval: {told}")
        drawn.append((f"Loss of {found.metric}", figures.differences(title, rows, "losses")))
    return drawn
