"""Progress of long steps: a bar on a terminal, plain lines elsewhere; each with rate and remaining time."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUIET_SECONDS = 10.0
"""How often a step that is not watched on a terminal prints a line."""

Advance = Callable[[int], None]


@contextmanager
def task(label: str, total: int | None = None, unit: str = "rows") -> Iterator[Advance]:
    """Show progress on standard error while the block runs; call the yielded function with the work just done."""
    if sys.stderr.isatty():
        with _bar(label, total, unit) as advance:
            yield advance
    else:
        yield _lines(label, total, unit)


@contextmanager
def _bar(label: str, total: int | None, unit: str) -> Iterator[Advance]:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
        from rich.text import Text
    except ImportError:  # the training floor has no rich
        yield _lines(label, total, unit)
        return

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} {unit}/s" if task.speed else "")

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), Rate())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
        handle = progress.add_task(label, total=total)
        yield lambda amount: progress.advance(handle, amount)


def _lines(label: str, total: int | None, unit: str) -> Advance:
    began = last = time.monotonic()
    done = 0

    def advance(amount: int) -> None:
        nonlocal done, last
        done += amount
        now = time.monotonic()
        if now - last >= QUIET_SECONDS:
            last = now
            rate = done / (now - began)
            left = f", {(total - done) / rate:,.0f} s left" if total else ""
            share = f" of {total:,}" if total else ""
            print(f"{label}: {done:,}{share} {unit}, {rate:,.0f} {unit}/s{left}", file=sys.stderr, flush=True)

    return advance
