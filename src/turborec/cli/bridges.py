"""The commands that make runs of weights from elsewhere: of other libraries, and of adapters with their base."""

from pathlib import Path
from typing import Annotated

import typer

from turborec.cli._options import DEFAULT_HOME, AsJson, Device, Home, Overrides, Raw, RecipeName, StoreFolder
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
