"""The commands about runs: train, evaluate, recommend."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from turborec.cli._options import (
    DEFAULT_HOME,
    AsJson,
    Device,
    Home,
    Overrides,
    Project,
    Raw,
    RunFolder,
    StoreFolder,
    Track,
    stem_of,
)
from turborec.cli._show import console, counted, escape, example_list, results_table
from turborec.cli.reports import report_or_warn
from turborec.errors import InterruptedRunError, UserError

if TYPE_CHECKING:
    from turborec.assembly import Run
    from turborec.evaluate import Result

app = typer.Typer()


@app.command()
def train(
    name: Annotated[str | None, typer.Argument(metavar="RECIPE", help="a shipped recipe or a YAML file")] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="the run folder; by default a new one below runs/")] = None,
    resume: Annotated[Path | None, typer.Option(help="go on with the run in this folder")] = None,
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
    store: StoreFolder = None,
    device: Device = "auto",
    dry: Annotated[bool, typer.Option("--dry", help="check and print the resolved recipe, and leave")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="a few steps of everything, to see that it runs")] = False,
    steps: Annotated[int | None, typer.Option(min=1, hidden=True, help="of an epoch at most, for a trial")] = None,
    track: Track = None,
    project: Project = "turborec",
    as_json: AsJson = False,
) -> None:
    """Prepare the data, train, evaluate against the anchors, and leave a run folder."""
    from turborec import recipes, run
    from turborec.engine import world
    from turborec.engine.trackers import Tracking
    from turborec.recipe import dump
    from turborec.stores import Places

    steps = steps or (5 if debug else None)
    if resume is not None and debug:
        raise UserError(
            "--debug takes a few steps of everything, which would spoil the run that is there: leave out one of them."
        )
    if resume is not None and (name is not None or overrides):
        raise UserError("A resumed run keeps its recipe: --resume takes no recipe and no changes. Train anew to change it.")
    if (name is None) == (resume is None):
        raise UserError("Name a recipe to train, or a run folder to go on with: `train RECIPE` or `train --resume RUN`.")
    if resume is not None:
        chosen = run.recipe_of(resume)
    else:
        chosen = recipes.load(str(name), [*(overrides or []), *(DEBUG if debug else [])])
    if dry:
        print(chosen.model_dump_json()) if as_json else console.print(escape(dump(chosen)), end="")
        return
    tracking = Tracking(tuple(track), project) if track else None
    with world.joined():
        # Every process would find another name for a new folder, so the leader does.
        folder = Path(world.told(str(resume or out or new_folder(str(name))) if world.leads() else None))
        try:
            done, results = run.train(chosen, folder, Places(home, raw, store), device, steps, tracking)
        except UserError as error:
            if world.leads() and not (resume or out or isinstance(error, InterruptedRunError)):
                remove_unbegun(folder)
            raise
        if not world.leads():
            return
    tell(folder, done, results, as_json)


def tell(folder: Path, done: "Run", results: "dict[str, Result]", as_json: bool) -> None:
    """The results of a run, an example of its recommendations and where its report is."""
    from turborec.apply import example

    page = report_or_warn(folder, done)
    if as_json:
        facts = {"folder": str(folder), "results": {name: {"masked": r.masked, "kept": r.kept} for name, r in results.items()}}
        print(json.dumps(facts))
        return
    results_table(results, done.recipe.select)
    example_list(example(done))
    if page:
        console.print(f"\nThe report is [bold]{escape(str(page))}[/bold]", end="")
    console.print(f"\nThe run is in [bold]{escape(str(folder))}[/bold]")


DEBUG = ["train.epochs=2", "then=[]", "evaluation.max_users=200"]
"""What --debug changes of a recipe, besides the steps of an epoch."""


@app.command()
def evaluate(
    folder: RunFolder,
    part: Annotated[str, typer.Option(help="test or validation")] = "test",
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
    store: StoreFolder = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Evaluate a run's best weights again, and the anchors: exact ranking of the whole catalogue."""
    from turborec import run
    from turborec.stores import Places

    if part not in ("test", "validation"):
        raise UserError(f"The part is test or validation, got {part!r}.")
    opened = run.reopen(folder, Places(home, raw, store), device)
    if part == "test" and not run.is_finished(folder):
        raise UserError(
            f"{folder} is not finished, and the test split is opened once, at the end. Finish it with turborec train "
            f"--resume {folder}, or look at --part validation."
        )
    results = run.evaluate(opened, part)  # type: ignore[arg-type]
    if as_json:
        print(json.dumps({name: {"masked": r.masked, "kept": r.kept} for name, r in results.items()}))
    else:
        results_table(results, opened.recipe.select)


@app.command()
def recommend(
    folder: RunFolder,
    users: Annotated[
        list[str] | None, typer.Option(help="user ids, or a file of them (lines, or a column `user`); everybody when absent")
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(
            help="their events, in place of the stored ones: columns user, item[, time], or those of the training data"
        ),
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="items a user gets")] = 10,
    out: Annotated[Path, typer.Option(help="a .parquet, .csv, .tsv or .jsonl file")] = Path("recommendations.parquet"),
    candidates: Annotated[
        Path | None, typer.Option(help="a file of the item ids that may be recommended (lines, or a column `item`)")
    ] = None,
    seen: Annotated[bool, typer.Option("--seen/--no-seen", help="whether items of the history may come again")] = False,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="TIME|now", help="when they are asked for (request_time: target); by default the end of the training data"
        ),
    ] = None,
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
    store: StoreFolder = None,
    device: Device = "auto",
) -> None:
    """Write the k best items for any users, with raw ids, in bounded memory; stored histories are used whole."""
    from turborec import run
    from turborec.apply import recommend_for, titles
    from turborec.recommend import Lists, write
    from turborec.stores import Places

    opened = run.reopen(folder, Places(home, raw, store), device)
    lists = Lists(k=k, seen="kept" if seen else "filtered")
    found, unknown = recommend_for(opened, lists, users, history, candidates, at)
    summary = write(found, out, opened.store, titles(opened.store))
    console.print(f"{counted(summary.rows, 'recommendation')} for {counted(summary.users, 'user')}: {escape(str(out))}")
    if summary.popular_users:
        who = f"{counted(summary.popular_users, 'user')}, such as {', '.join(map(repr, summary.popular_examples))}"
        console.print(f"Without a known event, and so given the most popular items (reason: popular): {escape(who)}.")
    if summary.unknown_events or unknown:
        left_out = f"{counted(summary.unknown_events, 'event')}, {counted(len(unknown), 'candidate')}"
        console.print(f"Not in the training data and left out: {left_out}.")


def remove_unbegun(folder: Path) -> None:
    """Remove the folder of a run that failed before it had any data, unless somebody has put something there."""
    written = {"recipe.yaml", "status.json", "log.txt", "run.lock"}
    if all(path.name in written for path in folder.iterdir()):
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def new_folder(name: str) -> Path:
    """A run folder nobody has yet."""
    stem = stem_of(name)
    for number in range(1, 10**6):
        folder = Path("runs") / f"{stem}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise UserError("runs/ is full: name a folder with --out.")
