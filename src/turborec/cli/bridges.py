"""The commands that take models over: from other libraries, from adapters with their base, and out of here as programs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from turborec.cli._options import DEFAULT_HOME, AsJson, Device, Home, Overrides, Raw, RecipeName, StoreFolder
from turborec.cli._show import console, escape
from turborec.cli.runs import new_folder, remove_unbegun, tell
from turborec.errors import UserError

app = typer.Typer()


@app.command("import")
def import_model(
    library: Annotated[str, typer.Argument(help="recbole, rectools or replay")],
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="what it saved, .pth or .ckpt")],
    name: RecipeName,
    overrides: Overrides = None,
    items: Annotated[
        Path | None, typer.Option(help="a JSON object, raw id -> row, where the checkpoint has no raw ids of items")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the run folder; by default a new one below runs/")] = None,
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
    store: StoreFolder = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Make a run of a SASRec or BERT4Rec of another library: the recipe says on what data it is evaluated."""
    from turborec.adopt import Checkpoint, adopt
    from turborec.stores import Places

    folder = out or new_folder(f"{library}-{name}")
    given, places = Checkpoint(library, checkpoint, items), Places(home, raw, store)
    try:
        run, results = adopt(given, name, overrides or [], folder, places, device)
    except UserError:
        if out is None:
            remove_unbegun(folder)
        raise
    tell(folder, run, results, as_json)


@app.command("merge")
def merge_adapters(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a finished run with adapters")],
    out: Annotated[Path | None, typer.Option(help="the run folder; by default a new one below runs/")] = None,
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
    store: StoreFolder = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Make one model of a run's base and the plain adapters that it has learnt: a run that needs neither."""
    from turborec.adopt import merge
    from turborec.stores import Places

    folder = out or new_folder(f"merged-{run.name}")
    try:
        merged, results = merge(run, folder, Places(home, raw, store), device)
    except UserError:
        if out is None:
            remove_unbegun(folder)
        raise
    tell(folder, merged, results, as_json)


@app.command("export")
def export_model(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a finished run of a model of sequences", exists=True)],
    out: Annotated[Path, typer.Option(help="the folder that the program is written to")],
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
    store: StoreFolder = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Write a run's model as a program of torch.export: histories in, scores of every item out, without turborec."""
    from turborec import exporting
    from turborec.run import reopen
    from turborec.stores import Places

    found = exporting.export(reopen(run, Places(home, raw, store), device), out)
    if as_json:
        print(json.dumps(found.values))
        return
    program = f"[bold]{escape(str(out / exporting.PROGRAM))}[/bold]"
    console.print(f"{program}: its scores differ from the model's by {found.difference:.2g} at most")
    console.print(f"Histories of at most {found.values['max_length']} events; {exporting.ITEMS} has the raw id of each column.")
    console.print(f"{exporting.FACTS} says how it is called, and docs/speed.md shows it.")
