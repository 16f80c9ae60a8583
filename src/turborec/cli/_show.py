"""Results as tables and lines on a terminal."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from turborec.apply import Example
    from turborec.evaluate import Result

console = Console(highlight=False, soft_wrap=True)


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
