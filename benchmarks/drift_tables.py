"""The section of RESULTS.md about drift, from the committed rows."""

from typing import Any

from rows import Row
from turborec.drift.attribution import CAUSES

STRONGEST = 6
"""Statistics of a table: those that come nearest to their thresholds, or lie farthest beyond."""


def drift_section(rows: list[Row]) -> list[str]:
    """What was told of each data set, and of the same with days and hours dealt anew."""
    found = sorted((row for row in rows if row["kind"] == "drift"), key=lambda row: (row["data"], row["model"]))
    if not found:
        return []
    lines = [
        "",
        "## Drift",
        "",
        "`turborec drift` of a model that was trained on the past of real data. An alarm is a statistic beyond its threshold",
        "in a period; dealt anew means with days and hours dealt among all events, so that nothing has moved and every alarm",
        "is a false one. Losses that are shown, by their interval and by dealing targets, are bold. docs/drift.md says more.",
        "",
        "| data | model | periods before, after | alarms | verdict | alarms, dealt anew | verdict, dealt anew |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        real, null = row["report"], row["report_of_null"]
        cells = [row["data"], row["model"], f"{len(real['reference'])}, {len(real['periods'])}, by {row['protocol']['every']}"]
        for name, one in (("alarms", real), ("alarms_of_null", null)):
            cells += [f"{row['values'][name]:.0f} of {len(one['data']) * len(one['periods'])}", one["verdict"]]
        lines.append(f"| {' | '.join(cells)} |")
    for row in found:
        lines += [
            "",
            f"### {row['data']}",
            "",
            *_statistics(row["report"]),
            "",
            *_losses(row["report"]),
            *_remarks(row["report"]),
        ]
    return lines


def _statistics(report: dict[str, Any]) -> list[str]:
    """Each statistic's greatest value as a share of its threshold, the strongest first."""
    rows = []
    for one in report["data"]:
        pairs = zip(one["values"], one["thresholds"], strict=True)  # without a threshold nothing can be told
        shares = [value / max(limit, 1e-12) if limit is not None else 0.0 for value, limit in pairs]
        place = max(range(len(shares)), key=shares.__getitem__)
        rows.append((shares[place], one, place))
    rows.sort(key=lambda row: -row[0])
    lines = ["| statistic | about | period | value | threshold | periods moved |", "|---" * 6 + "|"]
    for _, one, place in rows[:STRONGEST]:
        cells = [one["statistic"], one["cause"], report["periods"][place]]
        cells += [
            f"{one['values'][place]:.3f}",
            "–" if one["thresholds"][place] is None else f"{one['thresholds'][place]:.3f}",
            f"{sum(one['moved'])} of {len(one['moved'])}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _losses(report: dict[str, Any]) -> list[str]:
    """What the model has lost by period, and why."""
    before, *now = report["values"]
    causes, metric = CAUSES, report["metric"]
    lines = [
        f"| period | targets | of new items, new users | {metric} | loss and interval | {' | '.join(causes)} |",
        "|---" * (5 + len(causes)) + "|",
    ]
    lines.append(f"| before | {before['targets']:,} | {_new(before)} | {before['value']:.4f} |{' |' * (1 + len(causes))}")
    for one, loss in zip(now, report["losses"], strict=True):
        value = f"**{loss['value']:+.4f}**" if loss["shown"] else f"{loss['value']:+.4f}"
        interval = f"{value} ({loss['low']:+.4f} to {loss['high']:+.4f})"
        parts = " | ".join(f"{loss['causes'][name][0]:+.4f}" for name in causes)
        lines.append(f"| {one['period']} | {one['targets']:,} | {_new(one)} | {one['value']:.4f} | {interval} | {parts} |")
    return lines


def _new(one: dict[str, Any]) -> str:
    return f"{one['new']['items']:.0%}, {one['new']['users']:.0%}"


def _remarks(report: dict[str, Any]) -> list[str]:
    return ["", *(f"- {remark}" for remark in report["remarks"])] if report["remarks"] else []
