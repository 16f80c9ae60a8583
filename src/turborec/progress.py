"""Progress of long steps: a bar on a terminal, plain lines elsewhere; each with rate and remaining time."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

QUIET_SECONDS = 10.0
"""How often a step that is not watched on a terminal prints a line."""


class Advance(Protocol):
    """What a long step calls as it goes on."""

    def __call__(self, amount: int, note: str = "") -> None:
        """Tell how much work was just done and what else is worth showing, such as the loss."""
        ...


@contextmanager
def task(label: str, total: int | None = None, unit: str = "rows") -> Iterator[Advance]:
    """Show progress on standard error while the block runs; call the yielded function with the work just done."""
    show = _bar if sys.stderr.isatty() and _has_rich() else _lines
    if int(os.environ.get("RANK", "0")):
        show = _nothing  # of several processes the first one shows it
    with show(label, total, unit) as advance:
        yield advance


class Pace:
    """How long a job that goes on in steps still takes, by what it has taken since it was made."""

    def __init__(self, done: int) -> None:
        """`done`: steps done before, which say nothing about the time this process needs."""
        self._first, self._began = done, time.monotonic()

    def left(self, done: int, remaining: int) -> str:
        """Such as `12 min 30 s left`, when `done` steps are done and `remaining` are not."""
        each = (time.monotonic() - self._began) / max(1, done - self._first)
        return f"{duration(each * remaining)} left"


def _has_rich() -> bool:
    try:
        import rich  # noqa: F401
    except ImportError:  # the training floor does without
        return False
    return True


@contextmanager
def _bar(label: str, total: int | None, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Summary(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_summary(int(task.completed), total, unit, task.elapsed or 0.0, task.fields["note"], narrow))

    narrow = Console(stderr=True).width < 120
    bar = () if narrow else (BarColumn(20),)
    columns = (TextColumn("{task.description}", markup=False), *bar, Summary(Column(no_wrap=True)))
    # Removed at the end, so that what stays on the terminal are results.
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        handle = progress.add_task(label, total=total, note="")

        def advance(amount: int, note: str = "") -> None:
            progress.update(handle, advance=amount, note=note)

        yield advance


@contextmanager
def _nothing(label: str, total: int | None, unit: str) -> Iterator[Advance]:
    yield lambda amount, note="": None


@contextmanager
def _lines(label: str, total: int | None, unit: str) -> Iterator[Advance]:
    began = last = time.monotonic()
    done, shown, remark = 0, 0, ""

    def show() -> None:
        nonlocal shown
        shown = done
        print(f"{label}: {_summary(done, total, unit, time.monotonic() - began, remark)}", file=sys.stderr, flush=True)

    def advance(amount: int, note: str = "") -> None:
        nonlocal done, remark, last
        done, remark = done + amount, note
        if time.monotonic() - last >= QUIET_SECONDS:
            last = time.monotonic()
            show()

    yield advance
    if 0 < shown < done:  # who saw it begin wants to see it end
        show()


def _summary(done: int, total: int | None, unit: str, seconds: float, note: str, short: bool = False) -> str:
    """Such as `1,200 of 5,000 rows (24%), 60 rows/s, 1 min 03 s left, loss 0.31`, from the share on if `short`.

    Bytes are told in MB.
    """
    scale, digits, unit = (1e6, 1, "MB") if unit == "bytes" else (1, 0, unit)
    work = f"{done / scale:,.{digits}f}"
    if total is None:
        parts = [f"{work} {unit}"]
    else:
        parts = [_share(done, total) if short else f"{work} of {total / scale:,.{digits}f} {unit} ({_share(done, total)})"]
    if done and seconds > 0:
        rate = done / seconds
        parts.append(f"{rate / scale:,.{0 if rate / scale >= 10 else 2}f} {unit}/s")
        if total is not None and total > done:
            parts.append(f"{duration((total - done) / rate)} left")
    return ", ".join([*parts, note] if note else parts)


def _share(done: int, total: int) -> str:
    # Rounded down, so that only what is complete shows 100%.
    return f"{100 * done // total if total else 100}%"


def duration(seconds: float) -> str:
    """Such as `45 s`, `1 min 03 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"
