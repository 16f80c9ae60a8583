"""The command that studies the levers of a recipe by whole trainings."""

import json
from pathlib import Path
from typing import Annotated

import typer

from turborec.cli._options import DEFAULT_HOME, AsJson, Device, Home, Overrides, Raw, RecipeName, StoreFolder, stem_of
from turborec.cli._show import console, escape, study_tables

app = typer.Typer()


@app.command()
def study(
    recipe: RecipeName,
    overrides: Overrides = None,
    levers: Annotated[
        str,
        typer.Option(
            help="comma-separated: batch, every, metrics, accumulate, compile, width, clip, amp, fast, or one of their "
            "variants such as batch-2x-sqrt or float16; all; or none"
        ),
    ] = "all",
    variant: Annotated[
        list[str] | None, typer.Option(metavar="'NAME=A.B=VALUE …'", help="a further variant, by name; may be given again")
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="of the baseline's best validation value, which the time to quality is to")
    ] = 0.98,
    seeds: Annotated[int, typer.Option(min=1, help="trainings of each variant")] = 1,
    runs: Annotated[
        Path | None, typer.Option(help="where the trainings are kept; by default a folder of the recipe's below runs/")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="also write what was found to this JSON file")] = None,
    page: Annotated[Path | None, typer.Option(help="also write an HTML page to this file")] = None,
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
    store: StoreFolder = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train a recipe whole, and again with each lever of an acceleration guide: time, memory, stability and quality."""
    from turborec import recipes, stores
    from turborec.bench import study as studies
    from turborec.files import require_writable, write_whole
    from turborec.stores import Places

    for path in filter(None, (out, page)):
        require_writable(path)
    chosen = recipes.load(recipe, overrides or ())
    plan = studies.Plan(studies.named(levers), tuple(variant or ()), share, seeds)
    folder = runs or Path("runs") / f"study-{stem_of(recipe)}"
    found = {"recipe": recipe, **studies.run(chosen, stores.of_recipe(chosen, Places(home, raw, store)), plan, folder, device)}
    if as_json:
        print(json.dumps(found))
    else:
        study_tables(found)
    if out is not None:
        write_whole(out, json.dumps(found, indent=1))
    if page is not None:
        from turborec.report.study_page import write_study

        write_study(found, page)
        if not as_json:
            console.print(f"\nThe page is [bold]{escape(str(page))}[/bold]")
