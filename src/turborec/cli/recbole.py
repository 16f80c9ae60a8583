"""The commands about RecBole's model classes, which run in an environment of their own."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from turborec.cli._options import DEFAULT_HOME, AsJson, Device, Home
from turborec.cli.runs import new_folder
from turborec.errors import UserError

if TYPE_CHECKING:
    from turborec.recbole.job import Job, Task

app = typer.Typer(help="Models of RecBole 1.2.1, trained and measured by turborec.", no_args_is_help=True)

Model = Annotated[str | None, typer.Argument(metavar="MODEL", help="a general or sequential model class, such as SASRec")]
Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="RecBole's settings; values are YAML")]
Data = Annotated[Path | None, typer.Option(help="the folder of the atomic files, or the one above it")]
Dataset = Annotated[str, typer.Option(help="their name; ml-100k comes with RecBole")]
Files = Annotated[list[Path] | None, typer.Option("--config", help="a YAML file of RecBole's; may be given again")]
Python = Annotated[Path | None, typer.Option(help="a Python 3.11 or 3.12 to make the environment with")]


@app.command()
def train(
    model: Model = None,
    settings: Settings = None,
    data: Data = None,
    dataset: Dataset = "ml-100k",
    configs: Files = None,
    out: Annotated[Path | None, typer.Option(help="the run folder; by default a new one below runs/")] = None,
    resume: Annotated[Path | None, typer.Option(help="go on with the run in this folder")] = None,
    processes: Annotated[int, typer.Option(min=1, help="how many share each batch")] = 1,
    restarts: Annotated[int, typer.Option(min=0, help="how often to start anew after a failure, with several processes")] = 0,
    parity: Annotated[bool, typer.Option("--parity", help="rank as RecBole does: the four options below")] = False,
    times: Annotated[Literal["exact", "float32"] | None, typer.Option(help="in which order histories are")] = None,
    history: Annotated[
        Literal["recbole", "masked", "kept"] | None,
        typer.Option(help="recbole: kept for sequential models, masked for general ones"),
    ] = None,
    ties: Annotated[Literal["mid", "topk"] | None, typer.Option(help="equal scores: mid-rank, or torch.topk's order")] = None,
    digits: Annotated[int | None, typer.Option(min=1, max=12, help="decimals that values are rounded to")] = None,
    steps: Annotated[int | None, typer.Option(min=1, hidden=True, help="of an epoch at most, for a trial")] = None,
    device: Device = "auto",
    home: Home = DEFAULT_HOME,
    python: Python = None,
    as_json: AsJson = False,
) -> None:
    """Train a model class of RecBole from its settings and atomic files, and rank by the weights that validation chose."""
    from turborec.recbole.job import PARITY, Ranking, Task, job_of

    if (model is None) == (resume is None):
        raise UserError("Name a model class to train, or a run folder to go on with: `train MODEL` or `train --resume RUN`.")
    said = {"times": times, "history": history, "ties": ties, "digits": digits}
    if resume is not None and (settings or configs or data or out or steps or parity or any(said.values())):
        raise UserError("A resumed run keeps its settings: --resume takes none. Train anew to change them.")
    if resume is not None:
        job = job_of(resume)
        job = job if device == "auto" else job.model_copy(update={"device": device})
    else:
        base = PARITY if parity else Ranking()
        ranking = base.model_copy(update={name: value for name, value in said.items() if value is not None})
        job = _job(model, settings, data, dataset, configs)
        job = job.model_copy(update={"ranking": ranking, "device": device, "steps": steps})
    found = _made(home, python)
    folder = resume or out or new_folder(f"recbole-{job.model}")
    folder.mkdir(parents=True, exist_ok=True)
    task = Task(kind="train", job=job, out=str(folder.resolve()), processes=processes, restarts=restarts, as_json=as_json)
    _become(found, task, home)


@app.command()
def check(
    model: Model = None,
    settings: Settings = None,
    data: Data = None,
    dataset: Dataset = "ml-100k",
    configs: Files = None,
    weights: Annotated[
        Path | None, typer.Option(help="a run folder, or a checkpoint (.pth) of RecBole's; fresh weights when absent")
    ] = None,
    device: Device = "cpu",
    home: Home = DEFAULT_HOME,
    python: Python = None,
    as_json: AsJson = False,
) -> None:
    """Rank by RecBole itself and by turborec with RecBole's habits, from the same weights. Exit code 1 if they differ.

    Without a MODEL, `--weights RUN` says which model and which data.
    """
    from turborec.recbole.job import Task, job_of

    if model is not None:
        job = _job(model, settings, data, dataset, configs)
    elif weights is not None:
        job = job_of(weights).model_copy(update={"device": device})
    else:
        raise UserError(
            "Name a model class to check, or the run whose weights to check: `check MODEL` or `check --weights RUN`."
        )
    chosen = None if weights is None else str(weights.resolve())
    task = Task(kind="check", job=job.model_copy(update={"device": device}), weights=chosen, as_json=as_json)
    _become(_made(home, python), task, home)


@app.command()
def setup(home: Home = DEFAULT_HOME, python: Python = None) -> None:
    """Make RecBole's environment, which the other commands do when they first need it; print its interpreter."""
    print(_made(home, python))


def _made(home: Path, python: Path | None) -> Path:
    """The interpreter of RecBole's environment."""
    from turborec.engine.log import logging_to
    from turborec.recbole import environment

    with logging_to(None):
        return environment.ready(home, python)


def _job(model: str | None, settings: list[str] | None, data: Path | None, dataset: str, configs: list[Path] | None) -> "Job":
    """The job in the words of the command line, its mistakes told."""
    from turborec.recbole.job import Job, checked

    files, folder = tuple(map(str, configs or ())), None if data is None else str(data)
    return checked(Job(model=str(model), dataset=dataset, data=folder, configs=files, settings=tuple(settings or ())))


def _become(python: Path, task: "Task", home: Path) -> None:
    """Go on as the interpreter of RecBole's environment, so that signals and exit codes are its own."""
    from turborec.recbole import environment

    sys.stdout.flush()
    sys.stderr.flush()
    command = [str(python), "-m", "turborec.recbole", task.model_dump_json()]
    os.execve(python, command, environment.surroundings(home))
