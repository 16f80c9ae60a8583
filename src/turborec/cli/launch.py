"""The commands that start trainings in several processes, here or on a cluster."""

import json
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from turborec.cli import runs
from turborec.cli._launching import PASSED, asked_of, of_train, options_of, sequence_of, work_of
from turborec.cli._options import DEFAULT_HOME, Home, Overrides, Raw, RecipeName, StoreFolder
from turborec.cli._show import counted
from turborec.errors import UserError

app = typer.Typer(help="Train in several processes.", no_args_is_help=True)
verifying = typer.Typer()


@app.command(context_settings=PASSED)
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

    chosen = of_train(context.args)
    if (chosen["name"] is None) == (chosen["resume"] is None):
        raise UserError("Name a recipe to train, or a run folder to go on with: `RECIPE` or `--resume RUN`.")
    if chosen["name"]:
        recipes.load(chosen["name"], chosen["overrides"])  # a mistake in it is told once, not by every process
    folder, words = chosen["resume"] or chosen["out"], list(context.args)
    if folder is None:
        # Named here, because processes that are started anew would take another new folder.
        folder = runs.new_folder(chosen["name"])
        words += ["--out", str(folder)]
    raise typer.Exit(launcher.run(processes, words, folder, restarts))


@app.command(context_settings=PASSED)
def phases(
    context: typer.Context,
    processes: Annotated[int, typer.Option(min=1, help="of each training, each with its share of the cores")] = 1,
    restarts: Annotated[
        int, typer.Option(min=0, help="how often to start a training anew, from its last checkpoint, after a failure")
    ] = 0,
) -> None:
    """Train one recipe after another, each only if the one before was good enough: FILE --out FOLDER, options of `train`.

    Started again, it goes on where it was. Exit code 10 + N: phase N failed; 75 or 130: stopped, and saved.
    """
    from turborec.engine.interrupt import leaving_at_once
    from turborec.launch import local as launcher
    from turborec.launch import phases as sequences

    sequence, chosen = sequence_of(context.args)

    def train(words: list[str], place: Path) -> int:
        for start in range(restarts + 1):
            code = launcher.run(processes, [*words, "--out", str(place)], place)
            if code in (0, 2, *sequences.INTERRUPTED):  # a mistake would be the same one the next time
                break
            print(f"Exit code {code}, start {start + 1} of {restarts + 1}", flush=True)
        return code

    with leaving_at_once():
        raise typer.Exit(sequences.run(sequence, chosen["out"], options_of(chosen), train))


AFTER = "--kill-on-invalid-dep=yes"
"""What `sbatch` is told of a job that waits for another: it would wait for ever for one that has failed."""

Preset = Annotated[str, typer.Option(help="a kind of machine, or none; docs/launching.md lists them")]
Job = Annotated[list[str] | None, typer.Option("--job", help="what is asked of the machine, as name=value; --keys lists all")]
Keys = Annotated[bool, typer.Option("--keys", help="list what --job can say, and leave")]
PhasesFile = Annotated[str | None, typer.Option("--phases", help="a file of phases, in place of a recipe")]
ScriptFile = Annotated[Path | None, typer.Option("--script", help="write the script to this file; by default it is printed")]


@app.command(context_settings=PASSED)
def slurm(
    context: typer.Context,
    preset: Preset = "none",
    job: Job = None,
    keys: Keys = False,
    phases: PhasesFile = None,
    prepare: Annotated[bool, typer.Option("--prepare", help="prepare the data before, in a job without GPUs")] = False,
    script: ScriptFile = None,
    submit: Annotated[bool, typer.Option("--submit", help="hand it to sbatch")] = False,
) -> None:
    """Write the sbatch script of a training, which goes on after preemptions: the other words are those of `turborec train`."""
    from turborec import recipes
    from turborec.cli.recipes import tell_keys
    from turborec.files import write_whole
    from turborec.launch import slurm as rendering

    if keys:
        tell_keys(rendering.Job)
        return
    asked = asked_of(rendering.Job, preset, rendering.PRESETS, [*["prepare={}"] * prepare, *(job or ())])
    work = work_of(context.args, phases)
    for one in asked.array:
        recipes.load(work.command[0], [*(of_train(list(work.command))["overrides"] or ()), one])
    before = rendering.preparation(asked, work) if asked.prepare else None
    if before and not (script or submit):
        raise UserError("A preparation is a script of its own: name a file with --script, which it is put beside, or --submit.")
    text = rendering.script(asked, work)
    if script is not None:
        write_whole(script, text)
        if before:
            first = script.with_name(f"{script.stem}-prepare{script.suffix}")
            write_whole(first, before)
            number = f"$(sbatch --parsable {shlex.quote(str(first))})"
            print(f"sbatch --dependency=afterok:{number} {AFTER} {shlex.quote(str(script))}")
    if submit:
        waits = [f"--dependency=afterok:{_submitted(before)}", AFTER] if before else []
        print(f"Submitted batch job {_submitted(text, *waits)}")
    if script is None and not submit:
        print(text, end="")


def _submitted(text: str, *options: str) -> str:
    """Hand a script to Slurm: the number of the job."""
    if shutil.which("sbatch") is None:
        raise UserError("There is no sbatch on this machine: write the script with --script, and submit it on the cluster.")
    done = subprocess.run(["sbatch", "--parsable", *options], input=text, text=True, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise UserError("Slurm did not take the job; it has said why.")
    return done.stdout.strip().split(";")[0]


@app.command("script", context_settings=PASSED)
def plain(
    context: typer.Context,
    job: Job = None,
    keys: Keys = False,
    phases: PhasesFile = None,
    script: ScriptFile = None,
) -> None:
    """Write a script that trains on a plain machine: software, data, restarts. The other words are those of `train`."""
    from turborec.cli.recipes import tell_keys
    from turborec.files import write_whole
    from turborec.launch import script as rendering

    if keys:
        tell_keys(rendering.Machine)
        return
    text = rendering.script(asked_of(rendering.Machine, "none", {}, job), work_of(context.args, phases))
    if script is not None:
        write_whole(script, text)
    else:
        print(text, end="")


@app.command(context_settings=PASSED)
def runpod(
    context: typer.Context,
    debug: Annotated[bool | None, typer.Option("--debug/--production", help="a few steps of everything, or all")] = None,
    preset: Preset = "a6000",
    job: Job = None,
    keys: Keys = False,
    phases: PhasesFile = None,
    request: Annotated[
        bool, typer.Option("--request", help="print the JSON that creates the pod and holds the script")
    ] = False,
) -> None:
    """Write what a rented container begins with, which ends the pod when all is done: the other words are those of `train`."""
    from turborec.cli.recipes import tell_keys
    from turborec.launch import runpod as rendering

    if keys:
        tell_keys(rendering.Pod)
        return
    if debug is None:
        raise UserError("Say whether it is a trial or meant: --debug (a few steps of everything) or --production.")
    pod = asked_of(rendering.Pod, preset, rendering.PRESETS, job)
    work = work_of(context.args, phases, debug)
    if debug:
        work = replace(work, out=f"{work.out}-debug")  # another recipe, whose run would be in the way of the one that is meant
    text = rendering.start_script(pod, work)
    print(json.dumps(rendering.request(pod, text), indent=1) if request else text, end="")


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
