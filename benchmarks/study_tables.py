"""The section of RESULTS.md about the acceleration study, from the committed rows."""

from itertools import groupby
from typing import Any

from rows import Row


def study_section(rows: list[Row]) -> list[str]:
    """What whole trainings came to, and what became of the guide's claims."""
    found = [row for row in rows if row["kind"] == "study"]
    if not found:
        return []
    lines = [
        "",
        "## The acceleration study",
        "",
        "Whole trainings with the levers of a guide (docs/graph-models.md), each from nothing; `turborec study` makes a",
        "page of them. Seconds are of an epoch, of the processors: of its training the median, of validation the mean. Good",
        "after: processor seconds until validation first reaches 98 % of the best value of the baseline.",
    ]
    for name, some in groupby(found, lambda row: row["protocol"]["study"]):
        lines += _study(name, list(some))
    return lines


def _study(name: str, rows: list[Row]) -> list[str]:
    card = rows[0]["protocol"]
    clock, counts = card["clock"], card["data"]
    columns = [
        ("training", f"training_{clock}", "{:,.2f}"),
        ("validation", f"validation_{clock}", "{:,.2f}"),
        ("MiB", "peak_mib", "{:,.0f}"),
        ("not finite", "nonfinite_steps", "{:,.0f}"),
        ("epochs", "epochs", "{:,.0f}"),
        (f"validation {card['select']}", "validation", "{:.4f}"),
        *((f"test {metric}", metric, "{:.4f}") for metric in ("recall@20", "ndcg@20")),
        ("good after", f"quality_{clock}", "{:,.0f}"),
    ]
    shape = f"{counts['users']:,} users, {counts['items']:,} items, {counts['events']:,} events"
    lines = ["", f"### {name}", "", f"`{rows[0]['recipe']}` on {shape}. {card['source'] or ''}".rstrip(), *card["cautions"], ""]
    lines += [f"| variant | {' | '.join(told for told, _, _ in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        cells = [_cell(row["values"].get(key), form) for _, key, form in columns]
        state = "" if row["protocol"]["state"] == "finished" else f" ({row['protocol']['state']}: {row['protocol']['why']})"
        lines.append(f"| {row['variant']}{state} | {' | '.join(cells)} |")
    levers = [row["lever"] for row in rows if row["lever"]]
    return lines + [""] + [line for lever in levers for line in _lever(lever)]


def _lever(lever: dict[str, Any]) -> list[str]:
    told = "; ".join(f"`{one['name']}`: {one['told']}" for one in lever["variants"])
    return [f"- **{lever['name']}: {lever['verdict']}.** The guide: {lever['claim']} Measured: {told}."]


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)
