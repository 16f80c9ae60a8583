"""The tables of speed in RESULTS.md, from the committed rows."""

import statistics
from collections.abc import Callable
from itertools import groupby
from typing import Any

from rows import Row

PEERS = {"recbole": "RecBole", "rectools": "RecTools", "replay": "RePlay"}

EAGER = {
    "eager_all_logits": "plain PyTorch, logits everywhere",
    "eager_bf16": "plain PyTorch, logits at targets, bfloat16",
    "eager_tf32": "plain PyTorch, logits at targets, TF32",
    "eager": "plain PyTorch, logits at targets",
}

Column = tuple[str, Callable[[Row], str]]


def number(name: str, form: str = "{:,.0f}", scale: float = 1.0) -> Callable[[Row], str]:
    """A value of a row, where it has it."""
    return lambda row: form.format(scale * row["values"][name]) if name in row["values"] else ""


def interval(name: str, form: str = "{:.2f}×") -> Callable[[Row], str]:
    """A value of a row with its interval."""

    def cell(row: Row) -> str:
        if name not in row["values"]:
            return ""
        low, high = row["intervals"][name]
        plain = form.removesuffix("×")
        return f"{form.format(row['values'][name])} ({plain.format(low)}–{plain.format(high)})"

    return cell


def _either(ending: str) -> Callable[[Row], str]:
    """A ratio to whichever plain form the row has, of a further contestant."""
    return lambda row: "".join(interval(f"{name}_{ending}")(row) for name in ("step_vs_coo", "epoch_vs_gather_scatter"))


def _named(variant: str) -> str:
    """A variant as it is read."""
    return next((variant.replace(key, name) for key, name in EAGER.items() if variant.endswith(key)), variant)


def told(name: str) -> Callable[[Row], str]:
    """A fact about the lever that a row measures."""
    return lambda row: str((row["protocol"].get("lever") or {}).get(name) or "")


def table(rows: list[Row], columns: list[Column]) -> list[str]:
    """Rows in the columns that any of them fills."""
    cells = [[cell(row) for _, cell in columns] for row in rows]
    shown = [at for at in range(len(columns)) if any(line[at] for line in cells)]
    head = [columns[at][0] for at in shown]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return lines + [f"| {' | '.join(line[at] for at in shown)} |" for line in cells]


STEPS: list[Column] = [
    ("variant", lambda row: _named(row["variant"])),
    ("targets a CPU second", number("targets_per_cpu_second")),
    ("× plain PyTorch, logits at targets", interval("targets_per_second_vs_eager")),
    ("× plain PyTorch, logits everywhere", interval("targets_per_second_vs_eager_all_logits")),
    ("sampled × plain, at targets", interval("targets_per_second_sampled_vs_eager")),
    ("sampled × plain, everywhere", interval("targets_per_second_sampled_vs_eager_all_logits")),
    ("gain of the lever", interval("gain_of_lever")),
    ("promise", told("promise")),
    ("compared", told("comparison")),
    ("failed", told("failed")),
    ("step, ms", number("step_ms", "{:,.1f}")),
    ("epoch, s", number("epoch_seconds", "{:,.1f}")),
    ("fill", number("fill", "{:.1%}")),
    ("useful work", number("useful_flop_utilisation", "{:.0%}")),
    ("peak, MiB", number("peak_mib")),
]

PARTS: list[Column] = [
    ("data", lambda row: row["data"]),
    ("ranking × topk(10)", interval("evaluation_vs_topk")),
    ("ranking × a full sort", interval("evaluation_vs_sort")),
    ("batches × one sample at a time", interval("data_path_vs_dataset")),
]


SASREC_PYTORCH: list[Column] = [
    ("data", lambda row: row["data"]),
    ("turborec (sampled softmax) × SASRec.pytorch", interval("targets_per_second_sampled_vs_sasrec_pytorch")),
    ("plain PyTorch (same loss and batches) × SASRec.pytorch", interval("eager_vs_sasrec_pytorch")),
]

FORECASTS: list[Column] = [
    ("recipe", lambda row: row["recipe"]),
    ("epoch", number("forecast_epoch_seconds_of_measured", "{:.0%}")),
    ("validation", number("forecast_validation_seconds_of_measured", "{:.0%}")),
    ("peak memory", number("forecast_peak_of_measured", "{:.0%}")),
]


BATCH = {"strong": "shared out", "weak": "one for each", "apart": "trainings of their own, nothing exchanged"}

SCALING: list[Column] = [
    ("recipe", lambda row: row["recipe"]),
    ("changed", lambda row: row["protocol"]["named"]),
    ("processes", lambda row: str(row["protocol"]["processes"])),
    ("batch", lambda row: BATCH[row["protocol"]["mode"]] if row["protocol"]["processes"] > 1 else ""),
    ("tokens", lambda row: f"{row['protocol']['tokens']:,}"),
    ("rounds", lambda row: str(row["protocol"]["rounds"])),
    ("targets a second", number("targets_per_second")),
    ("× one process", lambda row: interval("two_process_speedup")(row) or interval("process_speedup")(row)),
    ("gradients exchanged whole, MiB", number("exchanged_mib", "{:,.1f}")),
    ("their exchange by itself", number("communication_share", "{:.1%} of a step")),
]


BATCHES: list[Column] = [
    ("recipe", lambda row: row["recipe"]),
    ("training", lambda row: row["variant"]),
    ("tokens", lambda row: f"{row['protocol']['tokens']:,}"),
    ("steps an epoch", number("steps_per_epoch")),
    ("targets a second", number("targets_per_second")),
    ("seeds", lambda row: str(row["seeds"])),
    ("test NDCG@10", lambda row: row["ndcg"]),
]


def _beside(row: Row) -> str:
    """The epoch's cost as a multiple of each other recipe's."""
    told = []
    for name in sorted(row["intervals"]):
        low, high = row["intervals"][name]
        told.append(f"{row['values'][name]:.2f}× {name.removeprefix('epoch_vs_')} ({low:.2f}–{high:.2f})")
    return ", ".join(told)


def _epoch(row: Row) -> str:
    return f"{row['values'][row['model'] + '_epoch_cpu_seconds']:.0f}"


EPOCHS: list[Column] = [
    ("recipe", lambda row: row["recipe"]),
    ("processor seconds an epoch", _epoch),
    ("cost beside others", _beside),
]


GRAPHS: list[Column] = [
    ("data", lambda row: row["data"]),
    ("model", lambda row: row["model"]),
    ("edges", lambda row: f"{row['protocol']['edges']:,}"),
    ("CPU s an epoch", number("ours_epoch_cpu_seconds", "{:.1f}")),
    ("plain", number("plain_epoch_cpu_seconds", "{:.1f}")),
    ("over sparse products in coordinates", interval("step_vs_coo")),
    ("over gathered and scattered messages", interval("epoch_vs_gather_scatter")),
    ("plain with the allocator as it comes", _either("default_allocator")),
    ("in reduced precision", _either("reduced_precision")),
    ("with a larger batch (other mathematics)", _either("larger_batch")),
    ("gradient, ours", number("gradient_difference", "{:.0e}")),
    ("gradient, plain", number("plain_gradient_difference", "{:.0e}")),
]


def _over_seeds(rows: list[Row]) -> list[Row]:
    """A row for each kind of training: the median rate, and the mean quality with its deviation."""
    kinds: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        kinds.setdefault((row["recipe"], row["variant"]), []).append(row)
    found = []
    for some in kinds.values():
        rates, ndcgs = ([row["values"][name] for row in some] for name in ("targets_per_second", "ndcg@10"))
        spread = f" ± {statistics.stdev(ndcgs):.4f}" if len(ndcgs) > 1 else ""
        values = {**some[0]["values"], "targets_per_second": statistics.median(rates)}
        found.append({**some[0], "values": values, "seeds": len(some), "ndcg": f"{statistics.mean(ndcgs):.4f}{spread}"})
    return found


def beside(peer: str) -> list[Column]:
    """The columns of a comparison with a peer."""
    return [
        ("data", lambda row: row["data"]),
        ("model", lambda row: row["model"]),
        ("contestant", lambda row: f"turborec, {row['variant']}" if peer not in row["variant"] else row["variant"]),
        ("targets a CPU second", number("targets_per_cpu_second")),
        ("× training", interval(f"targets_per_second_vs_{peer}", "{:.1f}×")),
        ("evaluation, CPU s", number("evaluation_cpu_seconds", "{:,.1f}")),
        ("× evaluation", interval(f"evaluation_vs_{peer}", "{:.1f}×")),
        ("epoch, CPU s", number("epoch_cpu_seconds", "{:,.1f}")),
        ("preparation, s", number("preparation_seconds", "{:,.1f}")),
        ("peak, MiB", number("peak_mib")),
        ("best validation NDCG@10", number("ndcg@10", "{:.4f}")),
        ("CPU s to the peer's quality", number("quality_cpu_seconds")),
        ("× to its quality", number(f"quality_seconds_vs_{peer}", "{:.1f}×")),
    ]


def speed_sections(rows: list[Row]) -> list[str]:
    """Everything about speed: steps and levers of each recipe, parts, and each peer."""
    speed = sorted((row for row in rows if row["kind"] == "speed"), key=lambda row: (row["data"], row["model"]))
    steps = [row for row in speed if "lever" in row["protocol"]]
    parts = [row for row in speed if row["model"] == "parts"]
    lines = []
    for (data, model), found in groupby(steps, key=lambda row: (row["data"], row["model"])):
        lines += ["", f"### {data}/{model}", *_by_place(list(found), STEPS)]
    lines += ["", "### Parts", *_by_place(parts, PARTS)] if parts else []
    for peer, name in PEERS.items():
        beside_it = pairs(speed, peer)
        lines += ["", f"### Beside {name}", *_by_place(beside_it, beside(peer))] if beside_it else []
    published = [row for row in speed if row["model"] == "sasrec-pytorch"]
    lines += ["", "### Beside SASRec.pytorch, in its shape", *_by_place(published, SASREC_PYTORCH)] if published else []
    epochs = [row for row in speed if row["variant"] == "epochs"]
    lines += ["", "### Epochs beside one another", *_by_place(epochs, EPOCHS)] if epochs else []
    graphs = [row for row in speed if row["variant"] == "graphs"]
    if graphs:
        told = (
            "Steps of graph models beside the same written plainly (`benchmarks/plain_graphs.py`), in turns, in float32, on "
            "the same batches with the same optimizer, freed memory kept for both; processor seconds. The allocator as it "
            "comes gives memory back after each step: there the plain form runs by itself in a process that changes nothing. "
            "Gradients: the first batch's distance from that of the plain form in float64."
        )
        lines += ["", "### Graph models", "", told, *_by_place(graphs, GRAPHS)]
    forecasts = [row for row in rows if row["kind"] == "forecast"]
    if forecasts:
        told = "What `turborec plan` forecast, as a share of what whole runs then took, median of three runs."
        lines += ["", "### Forecasts", "", told, *_by_place(forecasts, FORECASTS)]
    scaling = [row for row in rows if row["kind"] == "scaling"]
    if scaling:
        told = (
            "Processes of one thread each (gloo), against one such process, by wall time; fewer than six rounds give the range "
            "that was seen. States and rows of tables that are shared are not among the gradients exchanged whole."
        )
        lines += ["", "### Several processes", "", told, *_by_place(scaling, SCALING)]
    batches = [row for row in rows if row["kind"] == "batches"]
    if batches:
        told = (
            "Whole trainings, the epoch chosen on validation: what a larger batch does to the steps of an epoch and to "
            "quality, with the same rate and with one that follows. Rates by wall time, median over epochs and seeds."
        )
        lines += ["", "### Batches of several processes", "", told, *_by_place(_over_seeds(batches), BATCHES)]
    return lines


def _by_place(rows: list[Row], columns: list[Column]) -> list[str]:
    """A table for each machine and setting that rows were measured on."""
    places = sorted({_where(row) for row in rows})
    return [line for place in places for line in ("", place, "", *table([r for r in rows if _where(r) == place], columns))]


def summary(rows: list[Row]) -> list[str]:
    """One line for each recipe as it ships: how many times the rate of plain PyTorch, and of each peer with the same loss."""
    speed = [row for row in rows if row["kind"] == "speed" and row["model"] != "parts"]
    lines: dict[tuple[str, str], Row] = {}
    for row in speed:
        ratios = {name: value for name, value in row["values"].items() if name.startswith("targets_per_second_vs_")}
        plain = row["provenance"]["threads"] == 1 and not row["provenance"]["hardware"]["accelerators"]
        if ratios and plain and row["variant"] in ("default", "exact loss") and _is_exact(row):
            line = lines.setdefault(
                (row["data"], row["model"]), {"data": row["data"], "model": row["model"], "values": {}, "intervals": {}}
            )
            # Plain PyTorch has the exact loss whatever the recipe's, so beside a peer, too, the exact one counts.
            line["values"] |= ratios
            line["intervals"] |= {name: row["intervals"][name] for name in ratios}
    columns: list[Column] = [
        ("data", lambda row: row["data"]),
        ("model", lambda row: row["model"]),
        ("plain PyTorch, logits at targets", number("targets_per_second_vs_eager", "{:.1f}×")),
        ("plain PyTorch, logits everywhere", number("targets_per_second_vs_eager_all_logits", "{:.1f}×")),
        *[(name, number(f"targets_per_second_vs_{peer}", "{:.1f}×")) for peer, name in PEERS.items()],
    ]
    return table([lines[key] for key in sorted(lines)], columns) if lines else ["Not measured."]


def _is_exact(row: Row) -> bool:
    """Whether the row was measured with the exact cross-entropy."""
    protocol = row["protocol"]
    loss = protocol["loss"] if "loss" in protocol else protocol["model"]["loss"]
    return bool(loss["kind"] == "cross_entropy")


def pairs(rows: list[Row], peer: str) -> list[Row]:
    """turborec's rows measured beside the peer, each followed by the peer's own."""
    return [row for row in rows if row["protocol"].get("peer") == peer]


def _where(row: dict[str, Any]) -> str:
    facts = row["provenance"]
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] > 1)}"
    devices = ", ".join(facts["hardware"]["accelerators"]) or facts["hardware"]["processor"]
    return f"{devices}, {threads}, {row['protocol'].get('precision', 'float32')}."
