"""The arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="a shipped recipe (see `recipe list`) or a YAML file")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[A.B=VALUE]...", help="changes to the recipe; values are YAML")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder", exists=True, file_okay=False)]
Home = Annotated[Path, typer.Option(envvar="TURBOREC_HOME", help="where raw data and prepared stores are kept")]
Raw = Annotated[Path | None, typer.Option(help="a folder that holds the raw files already")]
StoreFolder = Annotated[Path | None, typer.Option("--store", help="use this prepared store as it is")]
StoreOrRecipe = Annotated[str, typer.Argument(metavar="STORE", help="a store's folder or key, or a recipe that prepares it")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Track = Annotated[list[str] | None, typer.Option(help="also tell a tracker: wandb or trackio; may be given again")]
Project = Annotated[str, typer.Option(envvar="TURBOREC_PROJECT", help="the trackers' project")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for a script")]

DEFAULT_HOME = Path.home() / ".cache" / "turborec"
