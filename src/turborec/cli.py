"""The command line: one function a command, each a call into the part of turborec that owns the topic."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from turborec import __version__
from turborec.errors import InterruptedRunError, UserError

if TYPE_CHECKING:
    from turborec.apply import Example
    from turborec.data.store import Store
    from turborec.evaluate import Result

app = typer.Typer(
    help="turborec trains recommenders, from raw interactions to a result that can be trusted and used.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
data = typer.Typer(help="Raw data and prepared stores.", no_args_is_help=True)
recipe = typer.Typer(help="The recipes that ship with turborec.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(recipe, name="recipe")
console = Console(highlight=False, soft_wrap=True)

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="a shipped recipe (see `recipe list`) or a YAML file")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[A.B=VALUE]...", help="changes to the recipe; values are YAML")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder", exists=True, file_okay=False)]
Home = Annotated[Path, typer.Option(envvar="TURBOREC_HOME", help="where raw data and prepared stores are kept")]
Raw = Annotated[Path | None, typer.Option(help="a folder that holds the raw files already")]
StoreFolder = Annotated[Path | None, typer.Option("--store", help="use this prepared store as it is")]
StoreOrRecipe = Annotated[str, typer.Argument(metavar="STORE", help="a store's folder or key, or a recipe that prepares it")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON for a script")]

DEFAULT_HOME = Path.home() / ".cache" / "turborec"


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="print the version and leave")] = False) -> None:
    """Print the version."""
    if show:
        console.print(f"turborec {__version__}")
        raise typer.Exit


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
    as_json: AsJson = False,
) -> None:
    """Prepare the data, train, evaluate against the anchors, and leave a run folder."""
    from turborec import recipes, run
    from turborec.apply import example
    from turborec.recipe import dump

    if resume is not None and (name is not None or overrides):
        raise UserError("A resumed run keeps its recipe: --resume takes no recipe and no changes. Train anew to change it.")
    if (name is None) == (resume is None):
        raise UserError("Name a recipe to train, or a run folder to go on with: `train RECIPE` or `train --resume RUN`.")
    if resume is not None:
        chosen = run.recipe_of(resume)
    else:
        chosen = recipes.load(str(name), [*(overrides or []), *(_DEBUG if debug else [])])
    if dry:
        console.print(escape(dump(chosen)), end="")
        return
    folder = resume or out or _new_folder(str(name))
    options = run.Options(home, raw, store, device, steps=5 if debug else None)
    done, results = run.train(chosen, folder, options)
    if as_json:
        facts = {"folder": str(folder), "results": {name: {"masked": r.masked, "kept": r.kept} for name, r in results.items()}}
        print(json.dumps(facts))
        return
    _print_results(results)
    _print_example(example(done))
    console.print(f"\nThe run is in [bold]{escape(str(folder))}[/bold]")


_DEBUG = ["train.epochs=2", "then=[]", "evaluation.max_users=200"]


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
    """Evaluate a run's best weights again: exact ranking of the whole catalogue."""
    from turborec import run

    if part not in ("test", "validation"):
        raise UserError(f"The part is test or validation, got {part!r}.")
    opened = run.reopen(folder, run.Options(home, raw, store, device))
    if part == "test" and not run.is_finished(folder):
        raise UserError(
            f"{folder} is not finished, and the test split is opened once, at the end. Finish it with turborec train "
            f"--resume {folder}, or look at --part validation."
        )
    result = run.measure(opened, part)  # type: ignore[arg-type]
    result.write(folder / "evaluation" / part / opened.recipe.model.kind, opened.store)
    if as_json:
        print(json.dumps({"masked": result.masked, "kept": result.kept}))
    else:
        _print_results({opened.recipe.model.kind: result})


@app.command()
def recommend(
    folder: RunFolder,
    users: Annotated[list[str] | None, typer.Option(help="user ids, or a file of them; all of the store's when absent")] = None,
    history: Annotated[
        Path | None, typer.Option(help="their events: columns user, item and, if wanted, time in the store's unit")
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="items a user gets")] = 10,
    out: Annotated[Path, typer.Option(help="a .parquet, .csv, .tsv or .jsonl file")] = Path("recommendations.parquet"),
    candidates: Annotated[Path | None, typer.Option(help="a file of the item ids that may be recommended")] = None,
    seen: Annotated[bool, typer.Option("--seen/--no-seen", help="whether items of the history may come again")] = False,
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
    store: StoreFolder = None,
    device: Device = "auto",
) -> None:
    """Write the k best items for any users, with raw ids, in bounded memory."""
    from turborec import run
    from turborec.apply import recommend_for
    from turborec.recommend import Lists, write

    opened = run.reopen(folder, run.Options(home, raw, store, device))
    lists = Lists(k=k, seen="kept" if seen else "filtered")
    found, unknown = recommend_for(opened, lists, users, history, candidates)
    summary = write(found, out, opened.store)
    console.print(f"{summary.rows:,} recommendations for {summary.users:,} users are in {escape(str(out))}.")
    if summary.popular_users:
        console.print(f"{summary.popular_users:,} users have no known event and got the most popular items (reason: popular).")
    if summary.unknown_events or unknown:
        console.print(f"Not in the training data and left out: {summary.unknown_events:,} events, {len(unknown):,} candidates.")


def _print_results(results: "dict[str, Result]") -> None:
    """A table with a line for each model and each of masked and kept history."""
    first = next(iter(results.values()))
    shown = [name for name in _SHOWN if name in first.values]
    part, users = first.card["part"], first.card["users"]
    other = "kept" if first.card["history"] == "masked" else "masked"
    table = Table(
        title=f"{part} split, {users:,} users, every item ranked, history {first.card['history']} ({other} in brackets)"
    )
    table.add_column("model")
    for name in shown:
        table.add_column(name, justify="right")
    for name, result in results.items():
        bracketed = result.kept if other == "kept" else result.masked
        table.add_row(name, *(f"{result.values[m]:.4f} ({bracketed[m]:.4f})" for m in shown))
    console.print(table)


_SHOWN = ("hr@10", "ndcg@10", "mrr")


def _print_example(example: "Example") -> None:
    """Ten recommendations by name for one user."""
    history = ", ".join(example.history)
    console.print(f"\nUser [bold]{escape(example.user)}[/bold], whose last items were: {escape(history)}")
    for place, (item, title, score) in enumerate(example.items, 1):
        console.print(f"  {place:2d}. {escape(title)}  [dim]{escape(item)}, {score:.2f}[/dim]")


def _new_folder(name: str) -> Path:
    """A run folder nobody has yet."""
    stem = Path(name).with_suffix("").as_posix().strip("./").replace("/", "-")
    for number in range(1, 10**6):
        folder = Path("runs") / f"{stem}-{number}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise UserError("runs/ is full: name a folder with --out.")


@recipe.command("list")
def recipe_list() -> None:
    """Name every recipe that ships."""
    from turborec import recipes

    for name, path in recipes.shipped().items():
        first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        console.print(f"[bold]{name}[/bold]  {escape(first)}")


@recipe.command("show")
def recipe_show(name: RecipeName, overrides: Overrides = None) -> None:
    """Print a recipe with every default filled in."""
    from turborec import recipes
    from turborec.recipe import dump

    console.print(escape(dump(recipes.load(name, overrides or []))), end="")


@data.command("list")
def data_list(home: Home = DEFAULT_HOME) -> None:
    """Name the sources, and the stores prepared so far."""
    import importlib

    from turborec.recipe import kinds

    console.print("[bold]Sources[/bold]")
    for kind in kinds("turborec.sources"):
        summary = (importlib.import_module(f"turborec.sources.{kind}").__doc__ or "").strip().splitlines()[0]
        console.print(f"  {kind}  {escape(summary)}")
    console.print(f"[bold]Prepared stores[/bold] in {escape(str(home / 'stores'))}")
    for card_file in sorted((home / "stores").glob("*/card.json")):
        try:
            card = json.loads(card_file.read_text(encoding="utf-8"))
            counts = {k: f"{card['counts'][k]:,}" for k in ("users", "items", "events")}
        except (ValueError, KeyError, TypeError):
            console.print(f"  {card_file.parent.name}  damaged: card.json cannot be read; delete the folder")
            continue
        described = ", ".join(f"{count} {noun}" for noun, count in counts.items())
        console.print(f"  {card_file.parent.name}  {card['source'].get('kind', '?')}: {described}")


@data.command("prepare")
def data_prepare(
    name: RecipeName, overrides: Overrides = None, home: Home = DEFAULT_HOME, raw: Raw = None, as_json: AsJson = False
) -> None:
    """Download and prepare a recipe's data; print where the store is."""
    from turborec import recipes, run
    from turborec.engine.log import logging_to

    with logging_to(None):
        store = run.prepare(recipes.load(name, overrides or []), run.Options(home, raw))
    print(json.dumps({"store": str(store.folder), "key": store.key}) if as_json else store.folder)


@data.command("describe")
def data_describe(store: StoreOrRecipe, home: Home = DEFAULT_HOME, raw: Raw = None, as_json: AsJson = False) -> None:
    """Show what a prepared store holds and how it came to be."""
    card = _open_store(store, home, raw).card
    if as_json:
        print(json.dumps(card))
        return
    shown = {key: value for key, value in card.items() if key != "files"}
    console.print_json(json.dumps(shown))


@data.command("verify")
def data_verify(store: StoreOrRecipe, home: Home = DEFAULT_HOME, raw: Raw = None) -> None:
    """Compare every file of a store with the checksums on its card."""
    opened = _open_store(store, home, raw)
    console.print(f"{len(opened.card['files'])} files agree with the card of {opened.key[:16]}.")


@data.command("export")
def data_export(
    store: StoreOrRecipe,
    out: Annotated[Path, typer.Option(help="a .parquet, .csv or .tsv file")],
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
) -> None:
    """Write a store's events with their raw ids and parts."""
    from turborec.data.export import export

    console.print(f"{export(_open_store(store, home, raw), out):,} events written to {escape(str(out))}.")


def _open_store(name: str, home: Path, raw: Path | None) -> "Store":
    """The store in a folder, or the one a recipe prepares."""
    from turborec import recipes, run
    from turborec.data.store import open_store

    if Path(name).is_dir():
        return open_store(Path(name))
    begun = [path.parent for path in (home / "stores").glob(f"{name}*/card.json")] if name.isalnum() else []
    if len(begun) == 1:
        return open_store(begun[0])
    return run.prepare(recipes.load(name), run.Options(home, raw))


def main() -> None:
    """Run a command; a user's mistake is one paragraph and exit code 2, an interrupted run 130."""
    if "OMP_WAIT_POLICY" not in os.environ:
        # Before torch is loaded: threads that wait give way soon. Beside other work on the machine, waiting threads that
        # spin for long made training nine times slower (docs/log.md).
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        app(standalone_mode=True)
    except InterruptedRunError as error:
        print(f"\n{error}", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        print(f"turborec: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"turborec: {place}{error.strerror or error}. Mend the place, or name another.", file=sys.stderr)
        sys.exit(2)
    except MemoryError as error:
        print(f"turborec: there is not enough memory ({error}). Lower batches.tokens or batches.max_length.", file=sys.stderr)
        sys.exit(2)
