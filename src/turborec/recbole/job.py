"""What is asked of RecBole's environment, as plain data: it travels there as JSON and is kept in the run folder."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from turborec.errors import UserError
from turborec.recipe import Config, parse, read

JOB = "recbole.json"
"""The file of a run folder that holds the job."""

Times = Literal["exact", "float32"]
History = Literal["recbole", "masked", "kept"]
Ties = Literal["mid", "topk"]


class Ranking(Config):
    """How a model is ranked: the truth by default, `PARITY` is what RecBole itself does."""

    times: Times = Field("exact", description="float32: histories in the order of times rounded as RecBole rounds them")
    history: History = Field("recbole", description="which values count; recbole: kept for sequential models, else masked")
    ties: Ties = Field("mid", description="mid: equal scores share their places; topk: whatever place torch.topk gives them")
    digits: int | None = Field(None, ge=1, le=12, description="decimals that values are rounded to")


PARITY = Ranking(times="float32", history="recbole", ties="topk", digits=4)


class Job(Config):
    """A model class of RecBole on a data set of its atomic files, with its own settings."""

    model: str = Field(description="a general or sequential model class, such as SASRec")
    dataset: str = Field("ml-100k", description="the name of the atomic files; ml-100k comes with RecBole")
    data: str | None = Field(None, description="the folder that holds DATASET.inter, or a folder DATASET with it")
    configs: tuple[str, ...] = Field((), description="YAML files, the last one wins")
    settings: tuple[str, ...] = Field((), description="KEY=VALUE, in RecBole's YAML; they win over the files")
    ranking: Ranking = Ranking()
    device: str = "auto"
    steps: int | None = Field(None, ge=1, description="of an epoch at most, for a trial")


class Task(Config):
    """A job and what to do with it."""

    kind: Literal["train", "check"]
    job: Job
    out: str | None = Field(None, description="the run folder, of a training")
    weights: str | None = Field(None, description="what to check: a run folder, or a checkpoint that RecBole wrote")
    processes: int = Field(1, ge=1)
    restarts: int = Field(0, ge=0)
    as_json: bool = False


def job_of(run: Path) -> Job:
    """The job that a run folder carries."""
    if not (run / JOB).is_file():
        raise UserError(f"{run} is not the folder of a RecBole run: it has no {JOB}.")
    return Job.model_validate_json((run / JOB).read_bytes())


def checked(job: Job) -> Job:
    """The job with whole paths, its mistakes told before RecBole's environment is needed."""
    if not job.model.isidentifier():
        raise UserError(f"A model is named by its class, such as SASRec or LightGCN, got {job.model!r}.")
    # That all is plain data is known now; RecBole reads it again with its own reader.
    for setting in job.settings:
        name, given, value = setting.partition("=")
        if not given or not name.isidentifier():
            raise UserError(f"A setting is KEY=VALUE with RecBole's own keys, such as learning_rate=0.01, got {setting!r}.")
        parse(value, f"The value of {name}")
    for path in job.configs:
        read(Path(path))
    folder = None if job.data is None else str(_folder(Path(job.data), job.dataset))
    configs = tuple(str(Path(path).resolve()) for path in job.configs)
    return job.model_copy(update={"configs": configs, "data": folder})


def _folder(data: Path, dataset: str) -> Path:
    """The folder whose child `dataset` holds the atomic files, as RecBole wants it, or the one that holds them itself."""
    for folder in (data / dataset, data):
        if (folder / f"{dataset}.inter").is_file() or next(folder.glob(f"{dataset}.*.inter"), None):
            return folder.resolve()
    raise UserError(f"There is no {dataset}.inter in {data} nor in {data / dataset}. Name the folder with --data.")
