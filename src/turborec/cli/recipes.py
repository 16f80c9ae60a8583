"""The commands about recipes."""

import typer
from rich.markup import escape

from turborec.cli._options import Overrides, RecipeName
from turborec.cli._show import console

app = typer.Typer(help="The recipes that ship with turborec.", no_args_is_help=True)


@app.command("list")
def list_recipes() -> None:
    """Name every recipe that ships."""
    from turborec import recipes

    for name, path in recipes.shipped().items():
        first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        console.print(f"[bold]{name}[/bold]  {escape(first)}")


@app.command()
def show(name: RecipeName, overrides: Overrides = None) -> None:
    """Print a recipe with every default filled in."""
    from turborec import recipes
    from turborec.recipe import dump

    console.print(escape(dump(recipes.load(name, overrides or []))), end="")
