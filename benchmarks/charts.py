"""Draw the committed rows of sizes, configurations and adapters: python benchmarks/charts.py FOLDER.

FOLDER gets a PNG for each chart and one page, charts.html, that holds them all; every chart says whose numbers it has. What
nobody measured is not drawn.
"""

import base64
import sys
from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rows import Row, read_all

Drawing = Callable[[Axes], None]


def where(row: Row) -> str:
    """The machine of a row."""
    hardware = row["provenance"]["hardware"]
    return ", ".join(hardware["accelerators"]) or hardware["processor"]


def of(rows: Sequence[Row], kind: str) -> list[Row]:
    """The rows of a kind."""
    return [row for row in rows if row["kind"] == kind]


def by_size(rows: list[Row], value: str, label: str) -> Drawing:
    """A line for each data set and machine, over the number of parameters."""

    def draw(axes: Axes) -> None:
        ordered = sorted(rows, key=lambda row: (row["data"], where(row), row["values"]["parameters"]))
        for (data, machine), some in groupby(ordered, key=lambda row: (row["data"], where(row))):
            members = list(some)
            x, y = [row["values"]["parameters"] for row in members], [row["values"][value] for row in members]
            axes.plot(x, y, marker="o", label=f"{data}, {machine}")
            for row, across in zip(members, x, strict=True):
                spread = row["by_seed"].get(value)
                if spread:
                    axes.vlines(across, min(spread), max(spread), alpha=0.4)
        axes.margins(y=0.15)
        axes.set_xscale("log")
        axes.set_xlabel("parameters, tables included")
        axes.set_ylabel(label)
        axes.legend(frameon=False, fontsize=8)

    return draw


WORDS = {
    "eager_all_logits": "plain PyTorch, logits everywhere",
    "eager": "plain PyTorch",
    "full": "all of it trained on",
    "anew": "trained anew",
    "frozen": "the base as it is",
    "lora": "LoRA",
    "ilora": "instance-wise LoRA",
    "scalar_gate": "the study's scalar gate",
}
"""What variants are called in charts, where their own names say little."""

APART = 20
"""How many times the least the greatest bar may be before the axis is one of logarithms."""


def bars(rows: list[Row], value: str, label: str) -> Drawing:
    """A bar for each variant, with a dot for each seed."""

    def draw(axes: Axes) -> None:
        known = [row for row in rows if row["values"].get(value) is not None]
        lengths = [row["values"][value] for row in known]
        axes.barh([WORDS.get(row["variant"], row["variant"].replace("ilora", WORDS["ilora"])) for row in known], lengths)
        for at, (row, length) in enumerate(zip(known, lengths, strict=True)):
            seeds = row.get("by_seed", {}).get(value, [])
            axes.plot(seeds, [at] * len(seeds), "k.", markersize=4)
            told = f"{length:,.0f}" if length >= 100 else f"{length:.4g}"
            axes.annotate(f"  {told}", (max([length, *seeds]), at), va="center", fontsize=8)
        if lengths and max(lengths) > APART * min(lengths) > 0:
            axes.set_xscale("log")
            axes.set_xlim(left=min(lengths) / 2)  # where bars begin says nothing
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xlabel(label)

    return draw


def by_hardware(rows: list[Row]) -> Drawing:
    """A bar for each size on each machine."""

    def draw(axes: Axes) -> None:
        names = [f"{row['data']}, {row['variant']}, {where(row)}" for row in rows]
        axes.barh(names, [row["values"]["epoch_seconds"] for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel("seconds of an epoch's steps")

    return draw


def charts(rows: list[Row]) -> dict[str, tuple[str, Drawing]]:
    """File name -> title and drawing."""
    found: dict[str, tuple[str, Drawing]] = {}
    if sizes := of(rows, "sizes"):
        found["epoch_time_vs_hardware"] = ("Epoch time against hardware", by_hardware(sizes))
        found["hr_vs_model_size"] = ("HR@10 against size, bars: the seeds", by_size(sizes, "hr@10", "HR@10, masked"))
        found["ndcg_vs_model_size"] = ("NDCG@10 against size, bars: the seeds", by_size(sizes, "ndcg@10", "NDCG@10, masked"))
        throughput = by_size(sizes, "targets_per_second", "targets a second")
        found["throughput_vs_model_size"] = ("Throughput against size", throughput)
        found["time_vs_model_size"] = ("Epoch time against size", by_size(sizes, "epoch_seconds", "seconds of its steps"))
        found["self_device_time_vs_model_size"] = (
            "Self device time of a step",
            by_size(sizes, "self_device_ms", "ms, profiled"),
        )
        found["peak_memory_vs_model_size"] = ("Peak memory against size", by_size(sizes, "peak_mib", "MiB"))
    named = sorted(of(rows, "configurations"), key=lambda row: row["protocol"]["name"])
    for name, some in groupby(named, key=lambda row: row["protocol"]["name"]):
        members = list(some)
        title = f"{name} on {where(members[0])}"
        found[f"step_time_{name}"] = (f"Step time, {title}", bars(members, "step_ms", "ms, wall"))
        found[f"self_device_time_{name}"] = (f"Self device time, {title}", bars(members, "self_device_ms", "ms, profiled"))
        found[f"peak_memory_{name}"] = (f"Peak memory, {title}", bars(members, "peak_mib", "MiB"))
    for name, some in groupby(sorted(of(rows, "adapters"), key=lambda row: row["data"]), key=lambda row: row["data"]):
        members = list(some)
        found[f"adapters_{name}"] = (
            f"Adaptation: {name}",
            bars(members, "ndcg@10", "NDCG@10 of the test, masked; dots: seeds"),
        )
        cost = [row for row in members if row["values"]["training_cpu_seconds"]]
        found[f"adapters_{name}_time"] = (f"Adaptation: {name}, time", bars(cost, "training_cpu_seconds", "processor seconds"))
    return found


def main() -> None:
    """Draw."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder, rows = Path(sys.argv[1]), read_all()
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for name, (title, draw) in charts(rows).items():
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title(title, fontsize=10)
        figure.savefig(folder / f"{name}.png", dpi=120)
        data = base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
        parts.append(f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{data}"></figure>')
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Sizes, configurations, adapters</title>'
        "<style>body{font:16px system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}img{max-width:100%}</style>"
        "<h1>Sizes, configurations, adapters</h1><p>Drawn by benchmarks/charts.py from the committed rows of "
        "benchmarks/results; what is missing was not measured.</p>" + "".join(parts) + "</html>"
    )
    (folder / "charts.html").write_text(page, encoding="utf-8")
    print(folder / "charts.html")


if __name__ == "__main__":
    main()
