"""The command that searches for a recipe's settings."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from turborec.cli._options import DEFAULT_HOME, AsJson, Device, Home, Overrides, Raw, RecipeName, StoreFolder, stem_of
from turborec.cli._show import console, escape, trials_table

app = typer.Typer()


@app.command()
def search(
    recipe: RecipeName,
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="a YAML file: keys of the recipe, and what they may be")],
    overrides: Overrides = None,
    trials: Annotated[int, typer.Option(min=1, help="trainings in all, of all processes and starts together")] = 20,
    jobs: Annotated[int, typer.Option(min=1, help="processes that train side by side on this machine")] = 1,
    sampler: Annotated[Literal["tpe", "random"], typer.Option(help="how settings are chosen")] = "tpe",
    prune: Annotated[bool, typer.Option(help="end trainings that validate below the median of the others")] = True,
    seed: Annotated[int, typer.Option(min=0, help="of the choices")] = 0,
    out: Annotated[Path | None, typer.Option(help="the folder of the search; by default one below runs/")] = None,
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
    store: StoreFolder = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train a recipe with many settings, and keep those that validate best. The test part is never opened."""
    from turborec import recipes, stores
    from turborec import search as searches
    from turborec.stores import Places

    chosen = recipes.load(recipe, overrides or ())
    folder = out or Path("runs") / f"search-{stem_of(recipe)}"
    # Prepared once, before there are processes that would wait for it.
    prepared = stores.of_recipe(chosen, Places(home, raw, store))
    plan, wanted = searches.Plan(trials, sampler, prune, seed), searches.space_of(space, chosen)
    others = [
        subprocess.Popen([sys.executable, "-m", "turborec", *_alone(sys.argv[1:])], stdout=subprocess.DEVNULL)
        for _ in range(jobs - 1)
    ]
    places = Places(home, store=prepared.folder)
    try:
        found = searches.search(chosen, wanted, plan, folder, places, device)
    finally:
        for other in others:
            other.wait()
    if others:
        found = searches.search(chosen, wanted, plan, folder, places, device)  # with what they did, and what they left
    if as_json:
        print(json.dumps([{**vars(one), "folder": str(one.folder)} for one in found]))
        return
    trials_table(found, chosen.select)
    if searches.best_of(found):
        best = escape(str(folder / searches.BEST))
        console.print(f"\nThe best settings are in [bold]{best}[/bold]: turborec train {best} tests them.")


def _alone(arguments: list[str]) -> list[str]:
    """The same command for one process."""
    return [*arguments, "--jobs", "1"]
