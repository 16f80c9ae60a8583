"""Results as tables and lines on a terminal."""

from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from turborec.apply import Example
    from turborec.compare import Comparison, Difference
    from turborec.evaluate import Result

console = Console(highlight=False, soft_wrap=True)


def counted(number: int, noun: str) -> str:
    """Such as `1 user` and `2,000 users`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def results_table(results: "dict[str, Result]") -> None:
    """A table with a line for each model and each of masked and kept history."""
    first = next(iter(results.values()))
    shown = [name for name in _SHOWN if name in first.values]
    part, users = first.card["part"], first.card["users"]
    other = "kept" if first.card["history"] == "masked" else "masked"
    table = Table(
        title=f"{part} split, {users:,} users, every item ranked, history {first.card['history']} ({other} in brackets)"
    )
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
        console.print(f"  {place:2d}. {escape(title)}  [dim]{escape(item)}, {score:.2f}[/dim]")


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
        table.add_column(name)
    for name in ("value", "difference [95 %]", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("shown")
    return table


def _difference(one: "Difference") -> list[str]:
    p = "<.001" if one.corrected < 0.001 else f"{one.corrected:.3f}".removeprefix("0")
    shown = {"better": "[green]better[/green]", "worse": "[red]worse[/red]"}.get(one.verdict, one.verdict)
    return [f"{one.value:.4f}", f"{one.difference:+.4f} [dim]\\[{one.low:+.4f}, {one.high:+.4f}][/dim]", p, shown]
