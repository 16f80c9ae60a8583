"""The page of a study: whole trainings side by side, their curves, and what became of each claim."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from turborec import __version__
from turborec.report import figures, page

BASELINE = "baseline"


def write_study(found: dict[str, Any], out: Path) -> None:
    """Write the page of what `bench.study.run` has found."""
    page.write(out, study_page(found))


def study_page(found: dict[str, Any]) -> str:
    """The page of a study."""
    rows, clock = found["rows"], found["clock"]
    terms = found["terms"] or ""
    tested = _tested(rows)
    numbered = list(enumerate(rows, start=1))
    facts = {
        "title": f"Study of {found['recipe']}",
        "version": __version__,
        "written": page.moment(datetime.now(UTC).timestamp()),
        "recipe": found["recipe"],
        "device": found["device"],
        "plan": found["plan"],
        "select": found["select"],
        "tested": tested,
        "warnings": [*filter(None, [found["warning"]]), *found["cautions"]],
        "generated": terms.partition(":")[0] if terms.startswith("Generated") else "",
        "clock": "processor seconds" if clock == "cpu_seconds" else "seconds",
        "rows": [_shown(row, rows[0], clock, tested) for row in rows],
        "figure": _figure(numbered, clock, found["select"], "all"),
        "levers": [
            lever | {"figure": _figure(_of(numbered, lever["name"]), clock, found["select"], lever["name"])}
            for lever in found["levers"]
        ],
        "provenance": page.rows_of({"data": found["data"], **found["provenance"]}),
    }
    return page.render("study", facts)


def _of(rows: list[tuple[int, dict[str, Any]]], lever: str) -> list[tuple[int, dict[str, Any]]]:
    """The baseline and the variants of a lever, with their numbers in the table."""
    return [(number, row) for number, row in rows if row["name"] == BASELINE or row["lever"] == lever]


def _tested(rows: list[dict[str, Any]]) -> list[str]:
    """The test values that some row has."""
    names = dict.fromkeys(name for row in rows for name in row["values"])
    return [name for name in names if "@" in name or name in ("mrr", "catalogue_auc")]


def _shown(row: dict[str, Any], baseline: dict[str, Any], clock: str, tested: list[str]) -> dict[str, Any]:
    """A row with how many times as fast its epoch is, and how much sooner it is good."""
    own, other = row["values"], baseline["values"]
    return {
        **row,
        "changes": " ".join(row["overrides"]),
        "training": own.get(f"training_{clock}"),
        "validation": own.get(f"validation_{clock}"),
        "wall": _sum(own.get("training_seconds"), own.get("validation_seconds")),
        "gain": _ratio(other.get(f"training_{clock}"), own.get(f"training_{clock}")),
        "quality": own.get(f"quality_{clock}"),
        "sooner": _ratio(other.get(f"quality_{clock}"), own.get(f"quality_{clock}")),
        "nonfinite": own.get("nonfinite_steps"),
        "epochs": own.get("epochs"),
        "best_epoch": own.get("best_epoch"),
        "measured": [own.get(name) for name in ("validation", *tested)],
        "memory": own.get("accelerator_peak_mib") or own.get("peak_mib"),
    }


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _sum(one: float | None, other: float | None) -> float | None:
    return one + other if one is not None and other is not None else None


def _figure(rows: list[tuple[int, dict[str, Any]]], clock: str, select: str, name: str) -> Any:
    """Validation values over seconds; None where nothing was validated."""
    place = 1 if clock == "cpu_seconds" else 0
    lines = [
        figures.Curve(
            [point[place] for point in row["curve"]], [point[2] for point in row["curve"]], f"{number}. {row['name']}"
        )
        for number, row in rows
        if row["curve"]
    ]
    if not lines:
        return None
    best = "; ".join(f"{line.label} {max(line.y):.4f} within {line.x[-1]:,.0f} s" for line in lines)
    told = page.plain(f"Validation {select} over {'processor ' if place else ''}seconds, the best of each: {best}")
    return figures.traces(told, lines, f"study-{name}", "processor seconds" if place else "seconds", large=name == "all")
