"""The page of a profile: where the time and the memory of a step go."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from turborec import __version__
from turborec.bench.profile import Profile
from turborec.report import figures, page


def write_profile(recipe: str, found: Profile, provenance: dict[str, Any], out: Path) -> None:
    """Write the page of what `bench.profile.take` has found."""
    page.write(out, profile_page(recipe, found, provenance))


def profile_page(recipe: str, found: Profile, provenance: dict[str, Any]) -> str:
    """The page of a profile."""
    parts = [(name, share * found.milliseconds) for name, share in found.parts.items() if share]
    told = "Milliseconds a step: " + "; ".join(f"{name} {value:,.2f}" for name, value in parts)
    drawn = [(name, value, value, value) for name, value in parts]
    shown = [("Milliseconds a step", figures.bars(told, drawn, "parts"))]
    memory = found.memory
    if memory.mib:
        told = f"Memory held by the steps over time, at most {max(memory.mib):,.1f} MiB"
        line = figures.Curve(memory.milliseconds, memory.mib)
        shown.append(("MiB held by the steps looked at", figures.timeline(told, line, "memory")))
    facts = {
        "title": f"A step of {recipe}",
        "version": __version__,
        "written": page.moment(datetime.now(UTC).timestamp()),
        "recipe": recipe,
        "found": found,
        "figures": shown,
        "provenance": page.rows_of(provenance),
    }
    return page.render("profile", facts)
