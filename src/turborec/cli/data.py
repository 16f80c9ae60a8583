"""The commands about raw data and prepared stores."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

import typer

from turborec.cli import features
from turborec.cli._options import DEFAULT_HOME, AsJson, Home, Overrides, Raw, RecipeName, StoreOrRecipe, periods_of
from turborec.cli._show import console, escape
from turborec.errors import UserError

if TYPE_CHECKING:
    from turborec.data.store import Store

KEY_DIGITS = 16
"""Of a store's key, which its folder is called by."""

Form = Literal["table", "recbole", "recformer"]

app = typer.Typer(help="Raw data and prepared stores.", no_args_is_help=True)
app.add_typer(features.app, name="features")


@app.command("list")
def list_data(home: Home = DEFAULT_HOME) -> None:
    """Name the sources, and the stores prepared so far."""
    import importlib

    from turborec.data.store import read_card
    from turborec.recipe import kinds

    console.print("[bold]Sources[/bold]")
    for kind in kinds("turborec.sources"):
        summary = (importlib.import_module(f"turborec.sources.{kind}").__doc__ or "").strip().splitlines()[0]
        console.print(f"  {kind}  {escape(summary)}")
    console.print(f"[bold]Prepared stores[/bold] in {escape(str(home / 'stores'))}")
    for card_file in sorted((home / "stores").glob("*/card.json")):
        try:
            card = read_card(card_file.parent)
            counts = {k: f"{card['counts'][k]:,}" for k in ("users", "items", "events")}
            source, names = card["source"]["kind"], [fact["name"] for fact in card["source"]["files"]]
            files = ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
        except (UserError, KeyError, TypeError):
            console.print(f"  {card_file.parent.name}  damaged, or of another version: delete the folder")
            continue
        described = ", ".join(f"{count} {noun}" for noun, count in counts.items())
        described += f", split {card.get('split', {}).get('kind')}" + "".join(f", {name}" for name in card.get("features", {}))
        made = datetime.fromtimestamp(card_file.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        console.print(f"  {card_file.parent.name}  {made}  {source} ({escape(files)}): {described}")


@app.command()
def prepare(
    name: RecipeName, overrides: Overrides = None, home: Home = DEFAULT_HOME, raw: Raw = None, as_json: AsJson = False
) -> None:
    """Download and prepare a recipe's data; print where the store is."""
    from turborec import recipes, stores
    from turborec.engine.log import logging_to

    with logging_to(None):
        store = stores.of_recipe(recipes.load(name, overrides or []), stores.Places(home, raw))
    print(json.dumps({"store": str(store.folder), "key": store.key}) if as_json else store.folder)


@app.command()
def fetch(
    address: Annotated[str, typer.Argument(help="https://, http:// or file://")],
    sha256: Annotated[str, typer.Option(help="of the file, 64 hexadecimal digits; other content is refused")],
    out: Annotated[Path, typer.Option(help="the folder it is put into")],
    name: Annotated[str | None, typer.Option(help="what it is called there; by default as in the address")] = None,
    tries: Annotated[int, typer.Option(min=1, help="how often, where the connection breaks")] = 4,
) -> None:
    """Fetch a file, on from where it stopped, and print where it is once its checksum is right."""
    from turborec.sources._fetch import Remote, fetch_trying

    place = out / (name or Path(urlsplit(address).path).name)
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UserError(f"--sha256 needs the file's SHA-256, 64 hexadecimal digits, got {sha256!r}.")
    print(fetch_trying(Remote(address, place.name, sha256=sha256.lower()), place.parent, tries))


@app.command()
def describe(store: StoreOrRecipe, home: Home = DEFAULT_HOME, raw: Raw = None, as_json: AsJson = False) -> None:
    """Show what a prepared store holds and how it came to be."""
    card = open_named(store, home, raw).card
    if as_json:
        print(json.dumps(card))
        return
    shown = {key: value for key, value in card.items() if key != "files"}
    console.print_json(json.dumps(shown))


@app.command()
def verify(store: StoreOrRecipe, home: Home = DEFAULT_HOME, raw: Raw = None) -> None:
    """Compare every file of a store with the checksums on its card."""
    opened = open_named(store, home, raw)
    console.print(f"{len(opened.card['files'])} files agree with the card of {opened.key[:16]}.")


@app.command()
def windows(
    store: StoreOrRecipe,
    every: Annotated[
        str, typer.Option(help="day, week, month or year, or a number: so many periods of as many events")
    ] = "month",
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
    as_json: AsJson = False,
) -> None:
    """Cut what comes after the training of a store that is split by time into periods, as `turborec drift` takes them."""
    from turborec.cutting import events_of, plan
    from turborec.worlds import of_store

    opened = open_named(store, home, raw)
    world = of_store(opened)
    chosen = plan(world, periods_of(every))
    rows = [{"window": f"{opened.folder}@{span}", "events": n} for span, n in events_of(world, chosen)]
    if as_json:
        print(json.dumps(rows))
    else:
        for row in rows:
            console.print(f"{escape(str(row['window']))}  {row['events']:,} events")
    for remark in chosen.remarks:
        typer.echo(remark, err=as_json)


@app.command()
def export(
    store: StoreOrRecipe,
    out: Annotated[Path, typer.Option(help="a .parquet, .csv, .tsv or .jsonl file; for RecBole and RecFormer a new folder")],
    form: Annotated[Form, typer.Option("--format", help="one table, RecBole's atomic files, or RecFormer's six")] = "table",
    parts: Annotated[bool, typer.Option("--parts", help="RecBole: files of their own for train, valid and test")] = False,
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
) -> None:
    """Write a store's events with their raw ids and parts."""
    from turborec.data import atomic, recformer_files
    from turborec.data import export as exports

    if parts and form != "recbole":
        raise UserError("--parts goes with --format recbole: a table has a column that says the part, RecFormer files.")
    opened = open_named(store, home, raw)
    if form == "recformer":
        events = recformer_files.export_recformer(opened, out)
    else:
        events = exports.export(opened, out) if form == "table" else atomic.export_atomic(opened, out, parts)
    console.print(f"{events:,} events written to {escape(str(out))}.")
    if form == "recformer":
        told = "data.source='{kind: recformer}' data.split='{kind: labelled}'"
        console.print(f"turborec reads them again with {escape(told)} and --raw {escape(str(out))}.")
    if form == "recbole":
        settings = {"order": "position"}
        settings |= {"time_format": "milliseconds"} if opened.card.get("time_unit") == "milliseconds" else {}
        settings |= {"benchmark_filename": "[train, valid, test]"} if parts else {}
        source = ", ".join(
            f"{key}: {value}" for key, value in {"kind": "recbole", "name": out.absolute().name, **settings}.items()
        )
        split = " data.split='{kind: labelled}'" if parts else ""
        console.print(f"turborec reads them again with data.source='{{{escape(source)}}}'{split} and --raw {escape(str(out))}.")


def open_named(name: str, home: Path, raw: Path | None) -> "Store":
    """The store in a folder, of a key, or the one a recipe has prepared or prepares now."""
    from turborec import recipes, stores
    from turborec.data.store import open_store

    if Path(name).is_dir():
        return open_store(Path(name))
    begun = [path.parent for path in (home / "stores").glob(f"{name[:KEY_DIGITS]}*/card.json")] if name.isalnum() else []
    if len(begun) == 1:
        return open_store(begun[0])
    if name not in recipes.shipped() and not Path(name).is_file():
        raise UserError(f"{name!r} is neither the folder nor the key of a store (see `turborec data list`), nor a recipe.")
    chosen = recipes.load(name)
    before = stores.prepared_before(chosen, home) if raw is None else None
    return open_store(before) if before else stores.of_recipe(chosen, stores.Places(home, raw))
