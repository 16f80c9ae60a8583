"""The words of `turborec train`, as commands read them that start trainings elsewhere or one after another."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from turborec.cli import runs
from turborec.errors import UserError, closest

if TYPE_CHECKING:
    from turborec.launch.phases import Phases
    from turborec.launch.script import Work
    from turborec.recipe import C

PASSED = {"allow_extra_args": True, "ignore_unknown_options": True}
"""What click is told of a command whose further words are those of `turborec train`."""

HELD = "A job needs a recipe, or --phases FILE, and a run folder that stays the same when it starts again: RECIPE --out RUN."


def of_train(words: list[str]) -> dict[str, Any]:
    """The words as `turborec train` reads them."""
    train: Any = typer.main.get_command(runs.app)
    return dict(train.commands["train"].make_context("train", list(words)).params)


def sequence_of(words: list[str]) -> "tuple[Phases, dict[str, Any]]":
    """The phases that FILE holds, as `--debug` has them where it is given, and all options as `train` reads them."""
    from turborec.launch import phases

    chosen = of_train(words)
    if chosen["name"] is None or chosen["out"] is None or chosen["overrides"]:
        raise UserError(
            "Name a file of phases and one folder for their runs: FILE --out FOLDER. Changes to recipes stand in the file."
        )
    if chosen["store"] or chosen["resume"] or chosen["dry"] or chosen["as_json"]:
        raise UserError("--store, --resume, --dry and --json are of one training: leave them out. The same command goes on.")
    sequence = phases.load(chosen["name"])
    return sequence.trial(runs.DEBUG) if chosen["debug"] else sequence, chosen


def options_of(chosen: dict[str, Any]) -> list[str]:
    """The options of `train` that every phase is given, as words."""
    given = [f"--{name}={chosen[name]}" for name in ("home", "raw", "device", "steps", "project") if chosen[name] is not None]
    return [*given, *(f"--track={kind}" for kind in chosen["track"] or ()), *["--debug"] * chosen["debug"]]


def work_of(words: list[str], phases: str | None, debug: bool = False) -> "Work":
    """What a script is to run: a training, or the phases of a file; all recipes are looked at first."""
    from turborec import recipes
    from turborec.launch import phases as sequences
    from turborec.launch.script import Work

    debugged = ["--debug"] * debug
    if phases is not None:
        _, chosen = sequence_of([phases, *words, *debugged])
        out, command = str(chosen["out"]), (phases, *without(words, "out"), *debugged)
        if phases in sequences.shipped():
            return Work(command, out, True)
        texts, beside = sequences.load(phases).carried(out)
        return Work(command, out, True, None, texts, beside)
    chosen = of_train(words)
    name, overrides = chosen["name"], chosen["overrides"] or []
    if name is None or chosen["out"] is None:
        raise UserError(HELD)
    recipes.load(name, overrides)
    said = {word.split("=")[0] for word in words}
    options = [f"--{place}={chosen[place]}" for place in ("home", "raw") if f"--{place}" in said]
    prepare = None if chosen["store"] else (name, *overrides, *options)
    rest = without(words, "out")
    rest.remove(name)
    text = None if name in recipes.shipped() else _text(name)
    return Work((name, *rest, *debugged), str(chosen["out"]), False, prepare, text)


def asked_of(kind: "type[C]", preset: str, presets: dict[str, dict[str, Any]], said: list[str] | None) -> "C":
    """What is asked of a machine: a preset, changed by `a=value`."""
    from turborec.recipe import override, validate

    if preset not in ("none", *presets):
        raise UserError(f"There is no preset {preset!r}{closest(preset, list(presets))}.")
    return validate(kind, override(dict(presets.get(preset, {})), said or ()), "The job")


def without(words: list[str], option: str) -> list[str]:
    """The words but for an option and its value."""
    kept, skip = [], False
    for word in words:
        if skip or word.startswith(f"--{option}="):
            skip = False
        elif word == f"--{option}":
            skip = True
        else:
            kept.append(word)
    return kept


def _text(name: str) -> str:
    return Path(name).read_text(encoding="utf-8")
