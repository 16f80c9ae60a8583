"""A training as a job of a Slurm cluster: the recipe's command in, one sbatch script out. Nothing here runs anything.

The script lives through preemptions: Slurm warns it some time before the end, it has the training saved, and puts itself back
into the queue, where it goes on from its checkpoint.
"""

import shlex
from typing import Any

from pydantic import Field, model_validator

from turborec.errors import UserError
from turborec.launch.local import HANDED_ON, SETTINGS
from turborec.launch.script import ALLOCATOR, Work, environment
from turborec.recipe import Config


class Preparation(Config):
    """A job of its own that prepares the data, on a node without GPUs."""

    cpus: int = Field(8, ge=1)
    memory: str = Field("32G", pattern=r"^[0-9]+[KMGT]$")
    time: str = Field("04:00:00", pattern=r"^([0-9]+-)?[0-9]{1,2}:[0-9]{2}:[0-9]{2}$", description="days-hours:minutes:seconds")
    partition: str | None = Field(None, pattern=r"^[A-Za-z0-9._,-]+$", description="by default the training's")


class Job(Config):
    """What is asked of the cluster."""

    name: str = Field("turborec", pattern=r"^[A-Za-z0-9._-]+$", description="of the job, and of its log")
    nodes: int = Field(1, ge=1)
    gpus: int = Field(0, ge=0, description="of each node; each has a process of its own")
    processes: int | None = Field(None, ge=1, description="of each node, where they are not as many as its GPUs")
    cpus: int = Field(8, ge=1, description="of each node")
    memory: str = Field("32G", pattern=r"^[0-9]+[KMGT]$", description="of each node")
    time: str = Field("24:00:00", pattern=r"^([0-9]+-)?[0-9]{1,2}:[0-9]{2}:[0-9]{2}$", description="days-hours:minutes:seconds")
    partition: str | None = Field(None, pattern=r"^[A-Za-z0-9._,-]+$")
    account: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]+$")
    warning: int = Field(
        180, ge=30, description="seconds before the end at which Slurm warns the training, or a minute earlier"
    )
    requeue: bool = Field(True, description="go on as the same job when the time is over or the machine is wanted")
    modules: tuple[str, ...] = Field((), description="environment modules to load")
    activate: str | None = Field(
        ".venv/bin/activate", description="the virtual environment's script, as seen from the job's folder"
    )
    container: str | None = Field(None, description="an image to run in (Apptainer), in place of a virtual environment")
    folder: str | None = Field(None, description="where the job runs; by default where it is submitted")
    after: str | None = Field(
        None, pattern=r"^[0-9]+$", description="a job that must have ended well before, such as a preparation"
    )
    array: tuple[str, ...] = Field((), description="one override for each job of an array: a sweep")
    allocator: str | None = Field(None, pattern=ALLOCATOR, description="PYTORCH_CUDA_ALLOC_CONF")
    prepare: Preparation | None = Field(None, description="prepare the data before, in a job that the training waits for")

    @model_validator(mode="after")
    def _one_environment(self) -> "Job":
        if self.container and self.modules:
            raise ValueError("container brings its own software: leave out modules, or the container")
        return self

    @property
    def processes_a_node(self) -> int:
        """Processes of the training on each node."""
        return self.processes or self.gpus or 1


PRESETS: dict[str, dict[str, Any]] = {
    "4xh100": {"gpus": 4, "cpus": 32, "memory": "480G", "time": "24:00:00", "allocator": "expandable_segments:True"},
    "snellius-4xh100": {
        "gpus": 4,
        "cpus": 32,
        "memory": "480G",
        "time": "24:00:00",
        "partition": "gpu_h100",
        "allocator": "expandable_segments:True,max_split_size_mb:256",
    },
}
"""A node of four H100, as the clusters that have them hand it out; and as the study of RecFormer asked Snellius for it."""


def script(job: Job, work: Work) -> str:
    """The sbatch script that carries out a training, or phases of them, in its run folder."""
    if work.phases and (job.nodes > 1 or job.array):
        raise UserError("Phases run on one node and not as an array: leave out nodes and array, or make a job of each phase.")
    return _rendered(job, work, preparing=False)


def preparation(job: Job, work: Work) -> str:
    """The sbatch script that prepares a training's data beforehand."""
    asked = job.prepare or Preparation()
    if work.prepare is None:
        raise UserError("Phases prepare their data themselves, and --store names what is prepared: leave out --prepare.")
    changes = {
        "name": f"{job.name}-prepare",
        **{"nodes": 1, "gpus": 0, "processes": None, "array": (), "requeue": True, "allocator": None},
        **{"cpus": asked.cpus, "memory": asked.memory, "time": asked.time, "partition": asked.partition or job.partition},
    }
    return _rendered(job.model_copy(update=changes), work, preparing=True)


def _rendered(job: Job, work: Work, preparing: bool) -> str:
    words = (work.prepare if preparing else work.command) or ()
    # Every word is quoted for the shell here; the template holds no value of the user's that is not checked or quoted.
    text: str = (
        environment()
        .get_template("slurm.sh.j2")
        .render(
            job=job,
            words=shlex.join(words),
            out=shlex.quote(work.out),
            overrides=[shlex.quote(one) for one in job.array],
            quote=shlex.quote,
            settings=SETTINGS,
            signals=HANDED_ON,
            phases=work.phases,
            preparing=preparing,
        )
    )
    return text
