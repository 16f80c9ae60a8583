"""A training as a script for a plain machine: checked, given software and data, and started anew after failures."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from turborec.recipe import Config

ALLOCATOR = r"^[A-Za-z0-9_]+:[A-Za-z0-9_.\[\]>:-]+(,[A-Za-z0-9_]+:[A-Za-z0-9_.\[\]>:-]+)*$"
"""What PyTorch's allocator of CUDA memory can be told, such as `expandable_segments:True`."""

END = "END_OF_FILE"


class Download(Config):
    """A file to be there before the training."""

    address: str = Field(pattern=r"^(https?|file)://[!-~]+$")
    sha256: str = Field(pattern=r"^[0-9a-fA-F]{64}$")
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$", description="by default as in the address"
    )

    @model_validator(mode="after")
    def _has_a_name(self) -> "Download":
        if self.name is None and not Path(urlsplit(self.address).path).name:
            raise ValueError(f"name: {self.address} does not say what the file is called")
        return self


class Machine(Config):
    """What is asked of a machine, and what it is given."""

    processes: int | None = Field(None, ge=1, description="by default one for each GPU, or one")
    gpus: int = Field(0, ge=0, description="that PyTorch must find")
    restarts: int = Field(3, ge=0, description="how often to start anew, from the last checkpoint, after a failure")
    python: str = Field("python3", description="3.11 or newer")
    environment: str | None = Field(
        ".venv", description="a virtual environment, made where it is not there; null: python has turborec already"
    )
    install: str = Field(".", description="what pip installs there: a checkout, a wheel or a requirement")
    constraints: str | None = Field(None, description="a file of pinned versions for pip")
    folder: str | None = Field(None, description="where it runs; by default where it is started")
    home: str | None = Field(None, description="TURBOREC_HOME: where raw data and prepared stores are kept")
    data: tuple[Download, ...] = Field((), description="files to fetch: [{address: …, sha256: …, name: …}]")
    data_folder: str = Field("data", description="where they are put, which is --raw and TURBOREC_DATA then")
    allocator: str | None = Field(None, pattern=ALLOCATOR, description="PYTORCH_CUDA_ALLOC_CONF")

    @property
    def started(self) -> int:
        """Processes of the training."""
        return self.processes or self.gpus or 1


@dataclass(frozen=True)
class Work:
    """What is to be run on a machine."""

    command: tuple[str, ...]  # words after `turborec launch local` or `turborec launch phases`, but for the run folder
    out: str
    phases: bool = False
    prepare: tuple[str, ...] | None = None  # words of `turborec data prepare`, where there is something to prepare before
    text: str | None = None  # of the recipe or phases, where they are a file that only this machine has: `command[0]`
    beside: Mapping[str, str] = field(default_factory=dict)  # what `text` names: files and their texts


def script(machine: Machine, work: Work, pod: Any = None) -> str:
    """The bash script; `pod`: where and how it ends, on RunPod."""
    command, prepare = list(work.command), list(work.prepare or ())
    raw = [f"--raw={machine.data_folder}"] if machine.data else []
    files = dict(work.beside)  # brought along in the script
    if work.text is not None:
        own = f"{work.out}.yaml"
        files[own] = work.text
        command[0] = own
        prepare[:1] = [own] if prepare else []
    # Every word is quoted for the shell here; the template holds no value of the user's that is not checked or quoted.
    text: str = (
        environment()
        .get_template("script.sh.j2")
        .render(
            machine=machine,
            work=work,
            words=shlex.join([*command, *raw]),
            prepare=shlex.join([*prepare, *raw]) if work.prepare else None,
            pod=pod,
            quote=shlex.quote,
            files=files.items(),
            mark=_mark,
        )
    )
    return text


def environment() -> Any:
    """Where the templates of scripts are, and how they are read."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).parent)
    return Environment(
        loader=folder, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )


def _mark(text: str) -> str:
    """A line that is none of the text."""
    mark = END
    while mark in text.splitlines():
        mark += "_"
    return mark
