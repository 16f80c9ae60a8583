"""The commands that show runs: compare and report."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from turborec.cli._options import DEFAULT_HOME, AsJson, Device, Home, Raw, RunFolder, StoreFolder
from turborec.cli._show import comparison_tables, console, escape
from turborec.errors import UserError

if TYPE_CHECKING:
    from turborec.assembly import Run

app = typer.Typer()


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="run folders, or RUN/MODEL for an anchor; the first is the baseline")
    ],
    part: Annotated[str, typer.Option(help="test or validation")] = "test",
    metric: Annotated[list[str] | None, typer.Option(help="compare these metrics; may be given again")] = None,
    history: Annotated[str | None, typer.Option(help="masked or kept; by default the one that counts in the runs")] = None,
    page: Annotated[Path | None, typer.Option(help="also write an HTML page to this file")] = None,
    store: StoreFolder = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs on the same users: paired intervals, corrected p values, slices. Other protocols are refused."""
    from turborec import compare as comparing

    if part not in ("test", "validation"):
        raise UserError(f"The part is test or validation, got {part!r}.")
    if history not in (None, "masked", "kept"):
        raise UserError(f"The history is masked or kept, got {history!r}.")
    terms = comparing.Terms(part, tuple(metric or ()), history, store)  # type: ignore[arg-type]
    found = comparing.compare(runs, terms)
    if page is not None:
        from turborec.report.compare_page import write_comparison

        write_comparison(found, page)
    if as_json:
        print(json.dumps(found.to_json()))
        return
    comparison_tables(found)
    if page is not None:
        console.print(f"\nThe page is [bold]{escape(str(page))}[/bold]")


@app.command()
def report(
    folder: RunFolder,
    out: Annotated[Path | None, typer.Option(help="the page; by default report.html in the run folder")] = None,
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
    store: StoreFolder = None,
    device: Device = "auto",
) -> None:
    """Write a run's report: one HTML page that needs nothing else."""
    from turborec import run
    from turborec.report.run_page import write_report
    from turborec.stores import Places

    run.recipe_of(folder)
    missing = ""
    try:
        opened = run.reopen(folder, Places(home, raw, store), device)
    except UserError as error:
        opened, missing = None, str(error)
        print(f"The report will lack recommendations and facts about the data: {error}", file=sys.stderr)
    console.print(escape(str(write_report(folder, opened, out, missing))))


def report_or_warn(folder: Path, run: "Run") -> Path | None:
    """The report of a run that has just ended; a run does not fail because its page does."""
    try:
        from turborec.report.run_page import write_report

        return write_report(folder, run)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        print(f"The report was not written ({why}). `turborec report {folder}` tries again.", file=sys.stderr)
        return None
