"""The arguments that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from turborec.errors import UserError

if TYPE_CHECKING:
    from turborec.drift.periods import Every

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

EveryPeriod = Annotated[
    str, typer.Option("--every", help="day, week, month or year, or a number: so many periods of as many events")
]

DEFAULT_HOME = Path.home() / ".cache" / "turborec"


def periods_of(every: str) -> "Every | int":
    """`--every` as it is meant."""
    if every.isdecimal() and int(every) > 0:
        return int(every)
    if every not in ("day", "week", "month", "year"):
        raise UserError(f"--every is day, week, month, year or a number of periods, got {every!r}.")
    return every  # type: ignore[return-value]


def stem_of(name: str) -> str:
    """What a run of a recipe is called: `ml-1m/sasrec` makes `ml-1m-sasrec`, a file its own name alone."""
    path = Path(name)
    return path.stem if path.suffix in (".yaml", ".yml") else path.as_posix().strip("./").replace("/", "-")
