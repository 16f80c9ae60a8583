"""The commands that start trainings in several processes, here or on a cluster."""

import shutil
import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer

from turborec.cli import runs
from turborec.cli._options import DEFAULT_HOME, Home, Overrides, Raw, RecipeName, StoreFolder
from turborec.cli._show import counted
from turborec.errors import UserError, closest

app = typer.Typer(help="Train in several processes.", no_args_is_help=True)
verifying = typer.Typer()


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def local(
    context: typer.Context,
    processes: Annotated[int, typer.Option(min=1, help="how many, each with its share of the cores")] = 2,
    restarts: Annotated[
        int, typer.Option(min=0, help="how often to start anew, from the last checkpoint, after a failure")
    ] = 0,
) -> None:
    """Train on this machine in several processes that share each batch: the words are those of `turborec train`."""
    from turborec import recipes
    from turborec.launch import local as launcher

    chosen = _of_train(context.args)
    if (chosen["name"] is None) == (chosen["resume"] is None):
        raise UserError("Name a recipe to train, or a run folder to go on with: `RECIPE` or `--resume RUN`.")
    if chosen["name"]:
        recipes.load(chosen["name"], chosen["overrides"])  # a mistake in it is told once, not by every process
    folder, words = chosen["resume"] or chosen["out"], list(context.args)
    if folder is None:
        # Named here, because processes that are started anew would take another new folder.
        folder = runs.new_folder(chosen["name"])
        words += ["--out", str(folder)]
    raise typer.Exit(launcher.meant(folder, launcher.run(processes, words, restarts)))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def slurm(
    context: typer.Context,
    preset: Annotated[str, typer.Option(help="a kind of node: none or 4xh100")] = "none",
    job: Annotated[
        list[str] | None, typer.Option(help="what is asked of the cluster, such as nodes=2 or partition=gpu; --keys lists all")
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="list what --job can say, and leave")] = False,
    script: Annotated[Path | None, typer.Option(help="write the script to this file; by default it is printed")] = None,
    submit: Annotated[bool, typer.Option("--submit", help="hand it to sbatch")] = False,
) -> None:
    """Write the sbatch script of a training, which goes on after preemptions: the other words are those of `turborec train`."""
    from turborec import recipes
    from turborec.cli.recipes import tell_keys
    from turborec.files import write_whole
    from turborec.launch import slurm as rendering
    from turborec.recipe import override, validate

    if keys:
        tell_keys(rendering.Job)
        return
    chosen = _of_train(context.args)
    if chosen["name"] is None or chosen["out"] is None:
        raise UserError("A job needs a recipe and a run folder that stays the same when it starts again: RECIPE --out RUN.")
    recipes.load(chosen["name"], chosen["overrides"])
    if preset not in ("none", *rendering.PRESETS):
        raise UserError(f"There is no preset {preset!r}{closest(preset, list(rendering.PRESETS))}.")
    tree = override(dict(rendering.PRESETS.get(preset, {})), job or ())
    asked = validate(rendering.Job, tree, "The job")
    for one in asked.array:
        recipes.load(chosen["name"], [*(chosen["overrides"] or ()), one])
    text = rendering.script(asked, _without_out(context.args), str(chosen["out"]))
    if script is not None:
        write_whole(script, text)
    if submit:
        raise typer.Exit(_sbatch(text))
    if script is None:
        print(text, end="")


def _sbatch(text: str) -> int:
    """Hand a script to Slurm, and say what it answers."""
    if shutil.which("sbatch") is None:
        raise UserError("There is no sbatch on this machine: write the script with --script, and submit it on the cluster.")
    return subprocess.run(["sbatch"], input=text, text=True, check=False).returncode


def _without_out(words: list[str]) -> list[str]:
    """The words of `train` but for the run folder, which the script names itself."""
    kept, skip = [], False
    for word in words:
        if skip or word.startswith("--out="):
            skip = False
        elif word == "--out":
            skip = True
        else:
            kept.append(word)
    return kept


@verifying.command()
def verify_resume(
    recipe: RecipeName,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=4, help="about how many to train")] = 40,
    kills: Annotated[int, typer.Option(min=1, help="how often, at random moments")] = 3,
    processes: Annotated[int, typer.Option(min=1, help="that share each batch")] = 1,
    seed: Annotated[int, typer.Option(help="of the moments")] = 0,
    home: Home = DEFAULT_HOME,
    raw: Raw = None,
    store: StoreFolder = None,
) -> None:
    """Train a little twice, once killed and resumed, and compare the weights to the bit. Exit code 1 if they differ."""
    from turborec import recipes, stores
    from turborec.launch.verify import verify
    from turborec.stores import Places

    chosen = recipes.load(recipe, overrides or ())
    opened = stores.of_recipe(chosen, Places(home, raw, store))
    found = verify(chosen, opened.folder, steps, kills, processes, seed)
    told, several = ", ".join(map(str, found.kills)), f"{processes} process{'es' * (processes > 1)}"
    print(f"{counted(found.steps, 'step')} in {several}, killed after {told} and resumed each time:")
    for name, value in found.hashes.items():
        print(f"  {'differs' if name in found.differing else 'the same'}  {value}  {name}")
    if not found.equal:
        raise typer.Exit(1)
    print("Killed and resumed equals never stopped.")


def _of_train(words: list[str]) -> dict[str, Any]:
    """The words as `turborec train` reads them."""
    train: Any = typer.main.get_command(runs.app)
    return dict(train.commands["train"].make_context("train", list(words)).params)
