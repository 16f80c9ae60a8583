"""The page of a benchmark: contestants, levers with the proof that they were on, the machine and its ceilings."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from turborec import __version__
from turborec.report import figures, page


def write_bench(found: dict[str, Any], out: Path) -> None:
    """Write the page of what `bench.matrix.run` has found."""
    page.write(out, bench_page(found))


def bench_page(found: dict[str, Any]) -> str:
    """The page of a benchmark."""
    rows = found["rows"]
    rates = [(row["name"], *_interval(row["targets_per_cpu_second"])) for row in rows]
    steps = [(row["name"], row["step_cpu_ms"], row["step_cpu_ms"], row["step_cpu_ms"]) for row in rows]
    facts = {
        "title": f"Steps of {found['recipe']}",
        "version": __version__,
        "written": page.moment(datetime.now(UTC).timestamp()),
        "recipe": found["recipe"],
        "device": found["device"],
        "plan": found["plan"],
        "warning": found["warning"],
        "rows": rows,
        "levers": found["levers"],
        "figures": [
            ("Targets a processor second", figures.bars(_told("Targets a processor second", rates), rates, "rates")),
            ("Processor milliseconds a step", figures.bars(_told("Processor milliseconds a step", steps), steps, "steps")),
        ],
        "limits": [
            (name, f"{limit['flops'] / 1e9:,.0f} GFLOP/s in products, {limit['bandwidth'] / 1e9:.1f} GB/s in copies")
            for name, limit in found["limits"].items()
        ],
        "provenance": page.rows_of({"data": found["data"], **found["provenance"]}),
    }
    return page.render("bench", facts)


def _interval(median: dict[str, float]) -> tuple[float, float, float]:
    return median["value"], median["low"], median["high"]


def _told(what: str, rows: list[Any]) -> str:
    return page.plain(f"{what}: " + "; ".join(f"{name} {value:,.1f}" for name, value, *_ in rows))  # type: ignore[no-any-return]
