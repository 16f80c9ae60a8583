"""The commands about recipes."""

from itertools import takewhile
from typing import TYPE_CHECKING, Annotated

import typer

from turborec.cli._options import Overrides, RecipeName
from turborec.cli._show import console, escape

if TYPE_CHECKING:
    from turborec.recipe import Config

app = typer.Typer(help="The recipes that ship with turborec.", no_args_is_help=True)


@app.command("list")
def list_recipes() -> None:
    """Name every recipe that ships."""
    from turborec import recipes

    for name, path in recipes.shipped().items():
        lines = path.read_text(encoding="utf-8").splitlines()
        told = " ".join(line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines))
        console.print(f"[bold]{name}[/bold]  {escape(told.split('. ')[0].rstrip('.'))}")


@app.command()
def show(name: RecipeName, overrides: Overrides = None) -> None:
    """Print a recipe with every default filled in."""
    from turborec import recipes
    from turborec.recipe import dump

    console.print(escape(dump(recipes.load(name, overrides or []))), end="")


@app.command()
def keys(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="whose source and model are told of")] = "ml-1m/sasrec",
    overrides: Overrides = None,
    below: Annotated[str, typer.Option(help="only the keys that begin so, such as train.schedule")] = "",
) -> None:
    """Tell what may stand in a recipe: every key with its values, its default and its meaning."""
    from turborec import recipes

    changes = overrides or []
    name, changes = ("ml-1m/sasrec", [name, *changes]) if "=" in name else (name, changes)
    tell_keys(type(recipes.load(name, changes)), below)


def tell_keys(kind: "type[Config]", below: str = "") -> None:
    """Every key of a config whose path begins so, with its values, its default and its meaning."""
    from turborec.recipe import keys

    for key in keys(kind):
        if not key.path.startswith(below):
            continue
        default = f" [dim]= {escape(key.default)}[/dim]" if key.default else ""
        meaning = f"\n    {escape(key.meaning)}" if key.meaning else ""
        console.print(f"[bold]{key.path}[/bold]  {escape(key.values)}{default}{meaning}")
