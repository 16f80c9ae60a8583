"""The commands that start trainings in several processes, here or on a cluster."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from turborec.cli import runs
from turborec.errors import UserError

app = typer.Typer(help="Train in several processes.", no_args_is_help=True)


@app.callback()
def launch() -> None:
    """Train in several processes."""


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
    raise typer.Exit(_code(folder, launcher.run(processes, words, restarts)))


def _of_train(words: list[str]) -> dict[str, Any]:
    """The words as `turborec train` reads them."""
    train: Any = typer.main.get_command(runs.app)
    return dict(train.commands["train"].make_context("train", list(words)).params)


def _code(folder: Path, ended: int) -> int:
    """What the run meant to end with, which a launcher that was stopped by a signal cannot know."""
    try:
        facts = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ended
    return int(facts.get("code", ended)) if ended and facts.get("state") == "interrupted" else ended
