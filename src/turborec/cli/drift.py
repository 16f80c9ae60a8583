"""The commands about drift: has the data moved, has the model lost, and why; and how often to train again."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from turborec.cli._options import (
    DEFAULT_HOME,
    AsJson,
    Device,
    EveryPeriod,
    Home,
    Overrides,
    Raw,
    RecipeName,
    StoreFolder,
    periods_of,
)
from turborec.cli._show import console, escape
from turborec.cli.runs import new_folder
from turborec.errors import UserError

if TYPE_CHECKING:
    from turborec.assembly import Assembly
    from turborec.checkup import Checkup
    from turborec.data.store import Store
    from turborec.worlds import Window, World


class _CheckByDefault(typer.core.TyperGroup):
    """`turborec drift RUN` is `turborec drift check RUN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name of the command where none is named."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["check", *args]
        return list(super().parse_args(ctx, args))


app = typer.Typer(
    help="Has the data moved, has the model lost, and why. `turborec drift RUN` is short for `turborec drift check RUN`.",
    no_args_is_help=True,
    cls=_CheckByDefault,
)

Current = Annotated[
    list[str] | None,
    typer.Option(
        "--current",
        help="what came later, as --reference; may be given again; in place of RUN's test part",
    ),
]


@app.command()
def check(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="a run; without one, --reference and --current")] = None,
    reference: Annotated[
        str | None, typer.Option(help="a store (folder, key or recipe), a file of RecBole's (.inter), or either @FROM..TO")
    ] = None,
    current: Current = None,
    every: EveryPeriod = "month",
    users: Annotated[int, typer.Option(min=50, help="sampled in each period, whom the model is asked for")] = 2000,
    category: Annotated[
        str | None, typer.Option(help="the attribute of items whose mix is looked at; by default genres, category or the like")
    ] = None,
    level: Annotated[float, typer.Option(min=0.001, max=0.5, help="probability of any false alarm")] = 0.05,
    resamples: Annotated[int, typer.Option(min=20, help="of the reference, behind the thresholds")] = 200,
    seed: Annotated[int, typer.Option(help="of the samples")] = 0,
    null: Annotated[
        bool,
        typer.Option("--null", help="deal days and hours anew among all events: whatever is told of the data then is chance"),
    ] = False,
    page: Annotated[Path | None, typer.Option(help="also write an HTML page to this file")] = None,
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Hold periods against those before: exit code 0 no drift, 3 the data have moved, 4 the model has lost."""
    from turborec.checkup import CODES
    from turborec.checkup import check as checked
    from turborec.cutting import plan
    from turborec.worlds import shuffled

    chosen = periods_of(every)
    with tempfile.TemporaryDirectory(prefix="turborec-drift-") as scratch:
        assembly, world = _world(run, reference, current, home, raw, device, Path(scratch), category)
        if null:  # in it, training has seen what lies in the future, so the model is not asked
            world, assembly = shuffled(world, seed), None
        found = checked(world, plan(world, chosen), assembly, users, level, resamples, seed)
    if page is not None:
        from turborec.report.drift_page import write_checkup

        write_checkup(found, page)
    print(json.dumps(found.to_json())) if as_json else _tell(found)
    if page is not None and not as_json:
        console.print(f"\nThe page is [bold]{escape(str(page))}[/bold]")
    raise typer.Exit(CODES[found.verdict])


@app.command()
def backtest(
    name: RecipeName,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="the folder of the trainings; what is trained there is not trained again")
    ] = None,
    every: EveryPeriod = "month",
    warm_epochs: Annotated[int | None, typer.Option(min=1, help="of a training that goes on; by default a quarter")] = None,
    users: Annotated[int, typer.Option(min=50, help="sampled in each period")] = 2000,
    seed: Annotated[int, typer.Option(help="of the samples")] = 0,
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
    store: StoreFolder = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train on the past of each period and ask for it and those after it: what training again is worth, and how often."""
    from rich.table import Table

    from turborec import recipes, stores
    from turborec.backtest import NEAR
    from turborec.backtest import backtest as tested
    from turborec.engine.log import logging_to

    recipe, cut = recipes.load(name, overrides or []), periods_of(every)
    with logging_to(None):
        opened = stores.of_recipe(recipe, stores.Places(home, raw, store))
        found = tested(recipe, opened, cut, out or new_folder(f"backtest-{name}"), device, warm_epochs, users, seed)
    if as_json:
        print(json.dumps(found.to_json()))
        return
    table = Table(title=f"{found.metric} over {len(found.plan.current)} periods, the cheapest first", title_justify="left")
    for column in ("trained", "events trained on", "processor seconds", "value", "loss against the best", "95 %"):
        table.add_column(column, justify="left" if column == "trained" else "right")
    for option in found.options:
        loss, low, high = option.loss
        row = (
            f"{option.events:,}",
            f"{option.seconds:,.1f}",
            f"{option.value:.4f}",
            f"{loss:+.4f}",
            f"{low:+.4f} to {high:+.4f}",
        )
        table.add_row(f"[bold]{option.name}[/]" if option is found.recommended else option.name, *row)
    console.print(table)
    console.print(
        f"Recommended: [bold]{found.recommended.name}[/bold], the cheapest whose loss against the best is not shown; of those "
        f"that train on as many events but for {NEAR:.0%}, the one with the best value."
    )


def _world(
    folder: Path | None,
    reference: str | None,
    current: list[str] | None,
    home: Path,
    raw: Path | None,
    device: str,
    scratch: Path,
    category: str | None,
) -> "tuple[Assembly | None, World]":
    """The model, where there is one, and what is looked at."""
    from turborec import run as running
    from turborec.stores import Places
    from turborec.worlds import Window, joined, of_store

    assembly = None if folder is None else running.reopen(folder, Places(home, raw), device)
    if assembly is None and reference is None:
        raise UserError("Name a run, or what is held against what: `drift RUN` or `drift --reference STORE --current STORE`.")
    if not current:
        if reference is not None and assembly is not None:
            raise UserError(
                "With a run, --reference is what it was trained on: leave it out, or name what came later with --current."
            )
        only = Window(assembly.store) if assembly else _window(str(reference), home, raw, scratch)
        if only.begin is not None:
            raise UserError(f"--reference {reference} is a window: name what it is held against with --current.")
        return assembly, of_store(only.store, category, only.file, asked=True)
    if assembly is not None and reference is not None:
        raise UserError("With a run, the reference is what it was trained on: leave out --reference.")
    first = Window(assembly.store) if assembly else _window(str(reference), home, raw, scratch)
    return assembly, joined(first, [_window(one, home, raw, scratch) for one in current], category)


def _window(name: str, home: Path, raw: Path | None, scratch: Path) -> "Window":
    """STORE, or STORE@FROM..TO."""
    from turborec.worlds import Window, instants

    # A place may have an @ of its own.
    place, _, span = (name, "", "") if "@" not in name or Path(name).exists() else name.rpartition("@")
    file = Path(place) if place.endswith((".inter", ".inter.gz")) else None
    store = _of_file(file, scratch) if file else _store(place, home, raw)
    begin, end = instants(span, store.ticks) if span else (None, None)
    return Window(store, begin, end, file)


def _store(name: str, home: Path, raw: Path | None) -> "Store":
    from turborec.cli.data import open_named

    return open_named(name, home, raw)


def _of_file(path: Path, scratch: Path) -> "Store":
    """A store of RecBole's atomic files, for as long as it is looked at: nothing is left out, and ratings are kept."""
    from turborec import recipes, stores
    from turborec.data.prepare import MILLISECONDS

    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    source = {"kind": "recbole", "name": path.name.removesuffix(".gz").removesuffix(".bz2").removesuffix(".inter")}
    recipe = recipes.from_tree({"data": {"source": source}, "model": {"kind": "popularity"}}, str(path))
    if "value" in recipe.data.source.parse(path.parent).events.select:
        data = {"source": source, "prepare": {"values": True}}
        recipe = recipes.from_tree({"data": data, "model": {"kind": "popularity"}}, str(path))
    try:
        return stores.of_recipe(recipe, stores.Places(scratch, path.parent))
    except UserError as error:
        if MILLISECONDS not in str(error):
            raise
        # There is no recipe here to state it in.
        stated = f"data.source='{{kind: recbole, name: {source['name']}, time_format: milliseconds}}'"
        told = f"If the times are milliseconds, prepare a store with {stated}, and name that."
        raise UserError(str(error).replace(MILLISECONDS, told)) from error


def _tell(found: "Checkup") -> None:
    """The verdict and what it rests on."""
    from rich.table import Table

    from turborec.checkup import SAYS

    names = [name.split(" to ")[0] for name in found.plan.names]
    table = Table(title=f"Data: {len(found.plan.reference)} periods before against each of those after", title_justify="left")
    for name in ("statistic", "about", "threshold", *names):
        table.add_column(name, justify="left" if name in ("statistic", "about") else "right")
    for row in found.rows():
        cells = [f"[bold red]{value:.4f}*[/]" if beyond else f"{value:.4f}" for value, beyond in row.cells]
        table.add_row(row.statistic.name, row.statistic.cause, row.threshold, *cells)
    console.print(table)
    console.print("* beyond its threshold; a range where periods have different ones; – cannot be told")
    if found.ranked:
        ranks = Table(title=f"Model: {found.metric} of {found.facts['sampled_users']:,} users at most", title_justify="left")
        for name in ("period", "value", "loss", "interval", *(found.losses[0].causes if found.losses else ())):
            ranks.add_column(name, justify="left" if name == "period" else "right")
        ranks.add_row("before", f"{found.ranked[0].value:.4f}")
        for name, one, loss in zip(names, found.ranked[1:], found.losses, strict=True):
            value = f"[bold red]{loss.value:+.4f}*[/]" if loss.shown else f"{loss.value:+.4f}"
            causes = (f"{cause[0]:+.4f}" for cause in loss.causes.values())
            ranks.add_row(name, f"{one.value:.4f}", value, f"{loss.low:+.4f} to {loss.high:+.4f}", *causes)
        console.print(ranks)
    for mix in found.mixes:
        told = ", ".join(f"{name} {before:.1%} → {now[-1]:.1%}" for name, before, now in mix.largest(3))
        if found.has_moved(mix.about):
            console.print(escape(f"Changed most of {mix.about}, from before to the last period: {told}"))
    for remark in (*found.facts["remarks"], *found.sentences()):
        console.print(escape(remark))
    console.print(f"Verdict: [bold]{found.verdict}[/bold]. {SAYS[found.verdict]}")
