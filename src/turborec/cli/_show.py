"""Results as tables and lines on a terminal."""

import os
import sys
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich import markup
from rich.console import Console
from rich.table import Table

from turborec.progress import duration
from turborec.shown import visible

if TYPE_CHECKING:
    from turborec.apply import Example
    from turborec.assembly import Parameters
    from turborec.bench.profile import Profile
    from turborec.compare import Comparison, Difference
    from turborec.evaluate import Result
    from turborec.plan import Forecast
    from turborec.search import Trial

# In a file or a pipe nothing is cut off; a terminal has its own width.
WIDE = 200
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() or os.environ.get("COLUMNS") else WIDE)


def escape(text: str) -> str:
    """Text from data for a terminal: its brackets are no markup, its control characters are written as their codes."""
    return markup.escape(visible(text))


def counted(number: int, noun: str) -> str:
    """Such as `1 user` and `2,000 users`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def results_table(results: "dict[str, Result]", select: str) -> None:
    """A table with a line for each model; `select` is the metric that chose the weights."""
    first = next(iter(results.values()))
    shown = [name for name in dict.fromkeys((select, *_SHOWN)) if name in first.values]
    part, users = first.card["part"], first.card["users"]
    masked = f"history {first.card['history']}"
    if "masks" in first.card and first.card["history"] == "masked":
        masked = "events of training masked"
    ranked = "every item" if "whole catalogue" in first.card["candidates"] else "items that training never sees"
    other = "kept" if first.card["history"] == "masked" else "masked"
    table = Table(title=f"{part} split, {users:,} users, {ranked} ranked, {masked} ({other} in brackets)")
    table.add_column("model")
    for name in shown:
        table.add_column(name, justify="right")
    for name, result in results.items():
        bracketed = result.kept if other == "kept" else result.masked
        table.add_row(name, *(f"{result.values[m]:.4f} ({bracketed[m]:.4f})" for m in shown))
    console.print(table)


_SHOWN = ("hr@10", "ndcg@10", "mrr")


def example_list(example: "Example") -> None:
    """Ten recommendations by name for one user."""
    history = ", ".join(example.history)
    console.print(f"\nUser [bold]{escape(example.user)}[/bold], whose last items were: {escape(history)}")
    for place, (item, title, score) in enumerate(example.items, 1):
        known = f"{item}, " if item != title else ""  # where items have no names they go by their ids
        console.print(f"  {place:2d}. {escape(title)}  [dim]{escape(known)}{score:.2f}[/dim]")


def comparison_tables(found: "Comparison") -> None:
    """The differences to the baseline, those within slices, and how they were found."""
    base, part, users = found.baseline, found.baseline.card["part"], len(found.baseline.users)
    table = _differences(f"{part} split, {users:,} users, history {found.history}: against {base.name}", "metric", "contestant")
    for metric, rows in groupby(found.differences, lambda one: one.metric):
        table.add_row(metric, escape(base.name), f"{found.value(base, metric):.4f}", "baseline", "", "")
        for one in rows:
            table.add_row("", escape(one.contestant), *_difference(one))
        table.add_section()
    console.print(table)
    for topic, slices in groupby(found.slices, lambda one: one.topic):
        some = list(slices)
        table = _differences(f"{some[0].differences[0].metric} by {topic}: against {base.name}", "slice", "contestant")
        for piece in some:
            first = piece.differences[0].baseline
            table.add_row(piece.name, escape(base.name), f"{first:.4f}", "baseline")
            for place, one in enumerate(piece.differences):
                users_once = "" if place else f"[dim]n = {piece.users:,}[/dim]"
                table.add_row(users_once, escape(one.contestant), *_difference(one))
            table.add_section()
        console.print(table)
    for remark in found.remarks:
        console.print(f"- {escape(remark)}")


def _differences(title: str, *columns: str) -> Table:
    table = Table(title=escape(title))
    for name in columns:
        table.add_column(name, overflow="fold")
    for name in ("value", "difference [95 %]", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("shown")
    return table


def _difference(one: "Difference") -> list[str]:
    p = "<.001" if one.corrected < 0.001 else f"{one.corrected:.3f}".removeprefix("0")
    shown = {"better": "[green]better[/green]", "worse": "[red]worse[/red]"}.get(one.verdict, one.verdict)
    return [f"{one.value:.4f}", f"{one.difference:+.4f} [dim]\\[{one.low:+.4f}, {one.high:+.4f}][/dim]", p, shown]


def bench_tables(found: "dict[str, Any]") -> None:
    """What a benchmark measured: contestants, then levers with the proof that they were on."""
    rounds = found["plan"]["rounds"]
    table = Table(
        title=f"training steps on {found['device']}, medians of {counted(rounds, 'round')}; in brackets {_bracket(rounds)}"
    )
    differ = len({row["loss"] for row in found["rows"]}) > 1  # a sampled loss beside an exact one
    columns = ("targets/s", "a CPU second", "recipe is", "step", "epoch", "fill", "useful work", "peak", "cold start")
    for name in ("", *["loss"] * differ, *columns):
        table.add_column(name, justify="right" if name not in ("", "loss") else "left")
    for row in found["rows"]:
        useful, peak, ratio = row.get("useful_flop_utilisation"), row.get("peak_mib"), row["vs_recipe"]
        table.add_row(
            row["name"],
            *[row["loss"]] * differ,
            f"{row['targets_per_second']['value']:,.0f}",
            f"{row['targets_per_cpu_second']['value']:,.0f}",
            f"{ratio['value']:.2f}x ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio else "",
            f"{row['step_ms']:.1f} ms",
            f"{row['epoch_seconds']:,.1f} s",
            f"{row['fill']:.1%}",
            f"{useful:.1%}" if useful is not None else "",
            f"{peak:,.0f} MiB" if peak is not None else "",
            f"{row['cold_start_seconds']:.1f} s",
        )
    console.print(table)
    for one in found.get("configurations", ()):
        if one["failed"]:
            console.print(f"[bold]{escape(one['name'])}[/bold]: not measured: {escape(one['failed'])}")
    if found.get("configurations"):
        lowered = next((row["main_type"] for row in found["rows"] if row["name"] == "amp"), "reduced precision")
        console.print(
            f"Of the eight, amp is {lowered}, compile is of layers, and ilora trains adapters beside a base that is as it was "
            "drawn, since a step takes as long with any weights; recipe is the recipe as it stands."
        )
    if found["levers"]:
        table = Table("lever", "gain", "promise", "proof that it was on", "kept")
        for one in found["levers"]:
            gain = one.get("gain")
            shown = f"{gain['value']:.2f}x ({gain['low']:.2f}-{gain['high']:.2f})" if gain else "failed"
            table.add_row(
                one["name"], shown, one.get("promise", ""), one.get("proof") or "", one["failed"] or one["comparison"]
            )
        console.print(table)
    console.print(
        "“a CPU second”: targets a processor second; a target is a prediction in the loss. “recipe is”: how many times the "
        "row's rate the recipe has, so that a lever which helps has more than 1 in its row “without”, and less in “with”. "
        "“gain”: the rate with a lever over that without it, in targets, or in events seen where the lever changes how many "
        "are predicted (masked). “useful work”: the arithmetic a step cannot do without, as a share of the best product in its "
        "type:"
    )
    for name, limit in found["limits"].items():
        product, copy = limit["flops"] / 1e9, limit["bandwidth"] / 1e9
        console.print(f"The machine at its best: {product:,.0f} GFLOP/s of {name} products, copies at {copy:.1f} GB/s")


def trials_table(found: "list[Trial]", select: str) -> None:
    """The trials of a search, the best first."""
    names = list(dict.fromkeys(name for one in found for name in one.settings))
    table = Table(title=f"{counted(len(found), 'trial')}, by validation {select}")
    for name in ("trial", "state", "value", "epochs", *names):
        table.add_column(name, justify="right", overflow="fold")
    for one in found:
        value = "" if one.value is None else f"{one.value:.4f}"
        settings = (_short(one.settings.get(name, "")) for name in names)
        table.add_row(str(one.number), one.state, value, str(one.epochs), *settings)
    console.print(table)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def study_tables(found: "dict[str, Any]") -> None:
    """What whole trainings came to, and what became of the claims about each lever."""
    clock, select, plan = found["clock"], found["select"], found["plan"]
    tested = [name for name in found["rows"][0]["values"] if "@" in name]
    unit = "processor seconds" if clock == "cpu_seconds" else "seconds"
    table = Table(title=f"whole trainings on {found['device']}, {counted(plan['seeds'], 'seed')}, in {unit}")
    table.add_column("variant", overflow="fold")
    columns = (
        "train",
        "validate",
        "MiB",
        "non-finite",
        "epochs",
        f"validation {select}",
        *(f"test {n}" for n in tested),
        "good after",
    )
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    shown = (f"training_{clock}", f"validation_{clock}", "peak_mib", "nonfinite_steps", "epochs", "validation", *tested)
    forms = ["{:,.2f}", "{:,.2f}", "{:,.0f}", "{:,.0f}", "{:,.0f}", *["{:.4f}"] * (1 + len(tested)), "{:,.1f}"]
    for row in found["rows"]:
        values = [row["values"].get(name) for name in (*shown, f"quality_{clock}")]
        cells = ["" if value is None else form.format(value) for value, form in zip(values, forms, strict=True)]
        table.add_row(escape(row["name"]), *cells)
    console.print(table)
    for row in (row for row in found["rows"] if row["state"] != "finished"):
        console.print(f"[bold]{escape(row['name'])}[/bold] {row['state']}: {escape(row['why'])}")
    for lever in found["levers"]:
        console.print(f"[bold]{lever['name']}[/bold]: {lever['verdict']}. The guide: {lever['claim']}")
        for one in lever["variants"]:
            console.print(f"  {one['name']}: {escape(one['told'])}")
    if (found["terms"] or "").startswith("Generated"):
        console.print(f"[bold]{escape(found['terms'])}[/bold]")
    for caution in found["cautions"]:
        console.print(f"[bold]{escape(caution)}[/bold]")
    console.print(
        f"Seconds are of an epoch: of its training the median, of validation the mean. “good after”: until validation first "
        f"reached {plan['share']:.0%} of the baseline's best value."
    )


def scaling_table(found: "dict[str, Any]") -> None:
    """How the rate of training grows with processes."""
    rounds = found["plan"]["rounds"]
    table = Table(title=f"processes of one thread, medians of {counted(rounds, 'round')}; in brackets {_bracket(rounds)}")
    for name in ("processes", "batch", "tokens", "targets/s", "speed-up", "step", "exchange by itself"):
        table.add_column(name, justify="left" if name == "batch" else "right")
    for row in found["rows"]:
        speedup = row["speedup"]
        alone = row["processes"] == 1
        table.add_row(
            str(row["processes"]),
            "" if alone else {"strong": "shared out", "weak": "one for each", "apart": "trainings of their own"}[row["mode"]],
            f"{row['tokens']:,}",
            f"{row['targets_per_second']['value']:,.0f}",
            "" if alone else f"{speedup['value']:.2f}x ({speedup['low']:.2f}-{speedup['high']:.2f})",
            f"{row['step_ms']:.1f} ms",
            "" if alone else f"{row['communication_share']:.1%} of a step, {row['exchanged_mib']:.1f} MiB",
        )
    console.print(table)
    if found["predicted"]:
        console.print(
            "Predicted, not measured: a batch for each, steps as long as one process's here, nothing of the exchange hidden:"
        )
    for name in dict.fromkeys(one["interconnect"] for one in found["predicted"]):
        speedups = [one for one in found["predicted"] if one["interconnect"] == name]
        told = ", ".join(f"{one['processes']} processes {one['speedup']:.2f}x" for one in speedups)
        console.print(f"  {name}: {told}")
    if found["warning"]:
        console.print(found["warning"])


def _bracket(rounds: int) -> str:
    """What an interval over so many rounds is (the sign test)."""
    return "intervals of at least 95 %" if rounds >= 6 else "all that was seen, which is no 95 % interval"


def profile_tables(found: "Profile") -> None:
    """Where the time of a step went."""
    console.print(f"A step takes {found.milliseconds:,.1f} ms under the profiler ({counted(found.steps, 'step')})")
    console.print(
        ", ".join(f"{name} {share:.0%}" for name, share in found.parts.items() if share >= 0.005)
        + " (forward without the head)"
    )
    if highest := found.memory.highest:
        console.print("held at most: " + ", ".join(f"{name} {mib:,.1f} MiB" for name, mib in highest.items()))
    table = Table("operation")
    for name in ("ms a step", "share", "calls"):
        table.add_column(name, justify="right")
    for one in found.operations:
        table.add_row(escape(one.name[:60]), f"{one.milliseconds:.2f}", f"{one.share:.1%}", f"{one.calls:.0f}")
    console.print(table)


def parameters_line(found: "Parameters") -> str:
    """How many there are, and where."""
    trained = "" if found.trained == found.total else f"; {found.trained:,} ({found.trained / found.total:.2%}) trained"
    return f"{found.total:,}: {found.body:,} in the body, {found.tables:,} in tables{trained}"


def forecast_lines(found: "Forecast") -> None:
    """What a run will need."""
    sizes, times = found.sizes, found.times
    mib = {name: f"{value / 2**20:,.1f} MiB" for name, value in vars(sizes).items() if isinstance(value, int)}
    lines = {
        "parameters": parameters_line(sizes.parameters),
        "memory": f"weights {mib['weights']}, gradients {mib['gradients']}, optimizer {mib['optimizer']}, "
        f"activations {mib['activations']}, logits {mib['logits']}",
        "at most": f"{mib['peak']} held while trying, of {found.free_memory / 2**20:,.0f} MiB that can be had",
        "disk": f"{mib['checkpoint']} a checkpoint, {found.free_disk / 2**20:,.0f} MiB free",
        "epoch": f"{found.steps:,} steps, {found.events:,} events to learn from, {found.fill:.1%} of the positions filled",
        "time": f"{1e3 * times.step:,.1f} ms a step, {times.epoch:,.1f} s an epoch, {times.validation:,.1f} s a validation; "
        f"{duration(times.total)} for all {found.epochs} epochs",
        "products": f"{found.dtype} on {found.device}",
    }
    for name, line in lines.items():
        console.print(f"{name:<11} {line}")
    for check in found.checks:
        console.print(f"{check.name:<11} {escape(check.says)}")
    if found.warning:
        console.print(found.warning)
