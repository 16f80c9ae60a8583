"""The section of RESULTS.md about sizes, configurations, adapters and preparation, from the committed rows."""

from itertools import groupby
from typing import Any

from rows import Row


def size_section(rows: list[Row]) -> list[str]:
    """How good and how fast a model is at several sizes, and what adapters and configurations come to."""
    parts = [_sizes(rows), _configurations(rows), _adapters(rows), _preparation(rows), _bounded(rows), _inference(rows)]
    lines = [line for part in parts for line in part]
    head = [
        "",
        "## Sizes, configurations and adapters of BERT4Rec",
        "",
        "Drawn in [charts/charts.html](charts/charts.html) by `python benchmarks/charts.py benchmarks/charts`.",
        "Not measured on an accelerator: no row here has one.",
        "Self device time is the profiler's, on the wall and after the turns: the profiler and other work lengthen it.",
        "Turns are of equal time, over whatever batches come: where steps had other numbers of targets, targets/s says more.",
    ]
    return [*head, *lines] if lines else []


def _sizes(rows: list[Row]) -> list[str]:
    lines: list[str] = []
    for (data, machine), some in groupby(
        sorted(_of(rows, "sizes"), key=lambda row: (row["data"], _machine(row))), key=lambda row: (row["data"], _machine(row))
    ):
        members = sorted(some, key=lambda row: row["values"]["parameters"])
        columns = (
            ("parameters", "parameters", "{:,.0f}"),
            ("in tables", "tables", "{:,.0f}"),
            ("HR@10", "hr@10", "{:.4f}"),
            ("NDCG@10", "ndcg@10", "{:.4f}"),
            ("targets/s", "targets_per_second", "{:,.0f}"),
            ("step ms", "step_ms", "{:,.1f}"),
            ("self device ms", "self_device_ms", "{:,.1f}"),
            ("epoch's steps, s", "epoch_seconds", "{:,.1f}"),
            ("trained, CPU s an epoch", "epoch_cpu_seconds", "{:,.1f}"),
            ("MiB", "peak_mib", "{:,.0f}"),
        )
        lines += [
            "",
            f"### {data}, {members[0]['model']} by size",
            "",
            f"{machine}; history masked, the mean of the seeds. Each size has the rate that validation chose for it, with one",
            "seed, so that a size which is the shipped recipe's need not have its values.",
            "",
        ]
        lines += _table(
            members,
            columns,
            ("rate", "top operation", "seeds"),
            lambda row: (f"{row['protocol']['rate']:g}", _top(row), str(row["protocol"]["seeds"])),
        )
    return lines


def _configurations(rows: list[Row]) -> list[str]:
    lines: list[str] = []
    for name, some in groupby(
        sorted(_of(rows, "configurations"), key=lambda row: row["protocol"]["name"]), key=lambda row: row["protocol"]["name"]
    ):
        members = list(some)
        card = members[0]["protocol"]
        counts = card["counts"]
        columns = (
            ("step ms", "step_ms", "{:,.1f}"),
            ("CPU ms", "step_cpu_ms", "{:,.1f}"),
            ("self device ms", "self_device_ms", "{:,.1f}"),
            ("MiB", "peak_mib", "{:,.0f}"),
            ("trained", "trainable_share", "{:.2%}"),
            ("calls a step", "calls", "{:,.0f}"),
            ("targets/s", "targets_per_second", "{:,.0f}"),
        )
        told = f"`{members[0]['recipe']}` {' '.join(card['overrides'])}".strip()
        shape = f"{counts['users']:,} users, {counts['items']:,} items"
        lines += [
            "",
            f"### {name}",
            "",
            f"{told} on {shape}; {_machine(members[0])}, {card['rounds']} rounds in turns, warm.",
            "",
        ]
        lines += _table(members, columns, ("products in", "top operation"), lambda row: (_products(row), _top(row)))
    return lines


def _adapters(rows: list[Row]) -> list[str]:
    lines: list[str] = []
    for name, some in groupby(sorted(_of(rows, "adapters"), key=lambda row: row["data"]), key=lambda row: row["data"]):
        members = list(some)
        columns = (
            ("HR@10", "hr@10", "{:.4f}"),
            ("NDCG@10", "ndcg@10", "{:.4f}"),
            ("trained", "trained", "{:,.0f}"),
            ("share", "trainable_share", "{:.2%}"),
            ("CPU s", "training_cpu_seconds", "{:,.0f}"),
            ("MiB", "peak_mib", "{:,.0f}"),
            ("checkpoint MiB", "checkpoint_mib", "{:.2f}"),
        )
        card = members[0]["protocol"]
        lines += ["", f"### {name}", "", f"{card['case']}; {card['seeds']} seeds; {_machine(members[0])}.", ""]
        lines += _table(members, columns, ("NDCG@10 less the frozen base's", "rate"), _beside)
    return lines


def _preparation(rows: list[Row]) -> list[str]:
    members = _of(rows, "preparation")
    if not members:
        return []
    columns = (
        ("raw MiB", "raw_mib", "{:,.0f}"),
        ("store MiB", "store_mib", "{:,.0f}"),
        ("seconds", "seconds", "{:,.1f}"),
        ("found again, s", "found_again_seconds", "{:,.1f}"),
        ("events/s", "events_per_second", "{:,.0f}"),
        ("most MiB", "peak_mib", "{:,.0f}"),
    )
    lines = ["", "### Preparation", "", "From raw files to a store, in a process of its own.", ""]
    return lines + _table(members, columns, ("data",), lambda row: (row["data"],))


def _bounded(rows: list[Row]) -> list[str]:
    members = _of(rows, "bounded")
    if not members:
        return []
    columns = (("store MiB", "store_mib", "{:,.0f}"), ("seconds", "seconds", "{:,.0f}"), ("most MiB", "peak_mib", "{:,.0f}"))
    told = "Raw files, store, some steps and the ranking of all validation and test targets, in one process; generated data."
    lines = ["", "### Most memory", "", told, ""]
    return lines + _table(members, columns, ("recipe", "events", "steps"), _size)


def _inference(rows: list[Row]) -> list[str]:
    members = _of(rows, "inference")
    if not members:
        return []
    columns = (
        ("ms a call", "call_ms", "{:,.2f}"),
        ("CPU ms", "call_cpu_ms", "{:,.2f}"),
        ("times as fast", "times_as_fast", "{:.2f}"),
    )
    lines = ["", "### Scores of a whole catalogue", "", "In turns; one thread. Weights are as drawn.", ""]
    return lines + _table(
        members, columns, ("recipe", "items"), lambda row: (f"`{row['recipe']}`", f"{row['protocol']['items']:,}")
    )


def _size(row: Row) -> tuple[str, ...]:
    card = row["protocol"]
    return f"`{row['recipe']}`", f"{card['counts']['events']:,}", str(card["steps"])


def _of(rows: list[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def _machine(row: Row) -> str:
    hardware, threads = row["provenance"]["hardware"], row["provenance"]["threads"]
    accelerators = ", ".join(hardware["accelerators"])
    return accelerators or f"{hardware['processor']}, {threads} thread{'s' * (threads > 1)}"


def _top(row: Row) -> str:
    name, share = row["protocol"].get("top_operation"), row["values"].get("top_share")
    return f"`{name}` {share:.0%}" if name and share is not None else ""


def _products(row: Row) -> str:
    card = row["protocol"]
    return str(card["products"] or "") if card["not_measured"] is None else f"not measured: {card['not_measured']}"


def _beside(row: Row) -> tuple[str, str]:
    value, rate = row["values"].get("ndcg@10_difference"), row["protocol"]["rate"]
    if value is None:
        return "", ""
    low, high = row["intervals"]["ndcg@10_difference"]
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})", f"{rate:g}"


def _table(members: list[Row], columns: Any, more: tuple[str, ...], cells: Any) -> list[str]:
    head = ["variant", *(told for told, _, _ in columns), *more]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in members:
        values = ["" if (value := row["values"].get(key)) is None else form.format(value) for _, key, form in columns]
        lines.append(f"| {' | '.join([row['variant'], *values, *cells(row)])} |")
    return lines
