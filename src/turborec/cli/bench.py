"""The commands that look at a recipe without training it: plan, bench and profile."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from turborec.cli._options import DEFAULT_HOME, AsJson, Device, Home, Overrides, Raw, RecipeName, StoreFolder
from turborec.cli._show import bench_tables, console, escape, forecast_lines, parameters_line, profile_tables, scaling_table
from turborec.errors import UserError

if TYPE_CHECKING:
    from turborec.data.store import Store
    from turborec.recipes import AnyRecipe

app = typer.Typer()


@app.command()
def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="the folder that the run would be written to")] = Path("runs"),
    largest_batch: Annotated[bool, typer.Option("--largest-batch", help="find the largest batches.tokens that fits")] = False,
    items: Annotated[int | None, typer.Option(min=1, help="only count the parameters for so many items, without data")] = None,
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
    store: StoreFolder = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Try a few steps and say what a run will need: parameters, memory, disk, time. Exit code 2 if it cannot work."""
    from turborec import recipes
    from turborec.assembly import assemble
    from turborec.plan import forecast

    if items is not None:
        _parameters(recipes.load(recipe, overrides or ()), items, "", as_json)
        return
    try:
        chosen, opened = _opened(recipe, overrides, home, raw, store)
    except UserError as error:
        chosen = recipes.load(recipe, overrides or ())
        if not (known := getattr(chosen.data.source, "known_items", None)) or store is not None or raw is not None:
            raise
        _parameters(chosen, known, f"The data are not here, so nothing was tried. {error}", as_json)
        return
    if largest_batch:
        _largest_batch(chosen, opened, device, home, as_json)
        return
    found = forecast(assemble(chosen, opened, device), out)
    if as_json:
        print(json.dumps({**asdict(found), "tried": True}, indent=1))
    else:
        forecast_lines(found)
    if found.problems:
        raise UserError("This run cannot work. " + " ".join(found.problems))


@app.command()
def bench(
    recipe: RecipeName,
    overrides: Overrides = None,
    levers: Annotated[
        str,
        typer.Option(
            help="measure on and off, comma-separated, or all: "
            "bucketing, bf16, fp16, compile, whole_model, cuda_graphs, recompute, replay, rows, muon, sampled, masked, focal, "
            "clip, cosine"
        ),
    ] = "",
    against: Annotated[
        str, typer.Option(help="plain PyTorch beside it, comma-separated: eager, eager_all_logits, eager_bf16, eager_tf32")
    ] = "",
    eight: Annotated[
        bool, typer.Option("--eight", help="also whole training and instance-wise adapters, plain, lowered, compiled, both")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="turns of each contestant; six give a 95 % interval")] = 6,
    seconds: Annotated[float, typer.Option(min=0.0, help="length of a turn")] = 2.0,
    gate: Annotated[int, typer.Option(min=0, help="epochs after which levers that change the mathematics are compared")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="of each such comparison")] = 3,
    processes: Annotated[str, typer.Option(help="instead: the speed-up by numbers of processes, such as 1,2,4")] = "",
    out: Annotated[Path | None, typer.Option(help="also write the measurements to this JSON file")] = None,
    page: Annotated[Path | None, typer.Option(help="also write an HTML page to this file")] = None,
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
    store: StoreFolder = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure a recipe's training step, its levers one by one, and plain PyTorch beside it, in turns."""
    from turborec.bench import matrix, promise, scaling
    from turborec.engine import log
    from turborec.files import require_writable, write_whole

    for path in filter(None, (out, page)):
        require_writable(path)
    chosen, opened = _opened(recipe, overrides, home, raw, store)
    if processes:
        numbers = _numbers(processes, unfit=bool(levers or against or eight or gate or page))
        measured = scaling.measure(chosen, opened, numbers, rounds, seconds, device)
    else:
        named, others = matrix.named(levers, chosen), matrix.opponents(against)
        plan = matrix.Plan(named, others, rounds, seconds, gate=promise.Gate(gate, seeds), eight=eight)
        with log.logging_to(None):  # compilation is silent for minutes
            measured = matrix.run(chosen, opened, plan, device)
    found = {"recipe": recipe, **measured}
    if as_json:
        print(json.dumps(found))
    else:
        (scaling_table if processes else bench_tables)(found)
    if out is not None:
        write_whole(out, json.dumps(found, indent=1))
    if page is not None:
        from turborec.report.bench_page import write_bench

        write_bench(found, page)


@app.command()
def profile(
    recipe: RecipeName,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="steps to look at")] = 10,
    top: Annotated[int, typer.Option(min=1, help="operations to show")] = 20,
    trace: Annotated[Path | None, typer.Option(help="write a trace for chrome://tracing or Perfetto to this file")] = None,
    page: Annotated[Path | None, typer.Option(help="also write an HTML page to this file, with the memory over time")] = None,
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
    store: StoreFolder = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Show where the time and the memory of a training step go: its parts and its costliest operations."""
    from turborec.assembly import assemble
    from turborec.bench import profile as profiling
    from turborec.engine import log
    from turborec.files import require_writable

    for path in filter(None, (trace, page)):
        require_writable(path)
    chosen, opened = _opened(recipe, overrides, home, raw, store)
    environment = log.environment()
    found = profiling.take(assemble(chosen, opened, device), steps, top, trace)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        profile_tables(found)
    if page is not None:
        from turborec.report.profile_page import write_profile

        write_profile(recipe, found, environment, page)
    if trace is not None and not as_json:
        console.print(f"\nThe trace is [bold]{trace}[/bold]: open it in chrome://tracing or ui.perfetto.dev")


def _numbers(text: str, unfit: bool) -> list[int]:
    """The numbers of processes that a comma-separated text names; `unfit`: options are given that have no meaning with them."""
    if unfit:
        raise UserError("--processes measures the recipe as it is: leave out --levers, --against, --gate and --page.")
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise UserError(f"--processes is a list of whole numbers such as 1,2,4, got {text!r}.") from error


def _largest_batch(recipe: "AnyRecipe", store: "Store", device: str, home: Path, as_json: bool) -> None:
    from turborec.bench import budget
    from turborec.engine import log

    with log.logging_to(None):  # each trial is told when it is done
        found, stated = budget.largest(recipe, store, device, home), recipe.batches.tokens
    if as_json:
        print(json.dumps(asdict(found)))
        return
    why = "a whole epoch in one batch" if found.whole else "more does not fit"
    console.print(f"The largest batches have about {found.tokens:,} tokens ({why}{'; remembered' * found.remembered}).")
    rule = f" 'train.scaling={{rule: square_root, tokens: {stated}}}'" if recipe.train.scaling.rule == "none" else ""
    console.print(
        f"The recipe has {stated:,}. Another size changes what is learnt, and the rate follows it by a rule"
        f"{'' if rule else ', which the recipe has'}:\n  batches.tokens={found.tokens}{rule}"
    )


def _parameters(recipe: "AnyRecipe", items: int, why: str, as_json: bool) -> None:
    """Print what is known of a model without its data."""
    from turborec.assembly import without_data

    found = without_data(recipe, items)
    if as_json:
        print(json.dumps({"items": items, "parameters": asdict(found), "tried": False, "warning": why or None}, indent=1))
        return
    console.print(f"items       {items:,} ({items + 1:,} rows a table: the first is padding)")
    console.print(f"parameters  {parameters_line(found)}")
    if why:
        console.print(escape(why))


def _opened(
    recipe: str, overrides: list[str] | None, home: Path, raw: Path | None, store: Path | None
) -> "tuple[AnyRecipe, Store]":
    from turborec import recipes, stores
    from turborec.stores import Places

    chosen = recipes.load(recipe, overrides or ())
    return chosen, stores.of_recipe(chosen, Places(home, raw, store))
