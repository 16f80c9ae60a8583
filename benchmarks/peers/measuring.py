"""What every `measure.py` shares: the job it reads, the clocks, the answer it writes.

The standard library, numpy, pandas and torch alone: a peer's own interpreter runs this, with this folder on PYTHONPATH.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import torch

K = 10
"""Places of a list that NDCG looks at."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a contestant may train, and with what."""

    threads: int = 1
    seconds: float = 20.0  # of training that are measured, after the warm-up
    warm_up: int = 3  # steps
    epochs: int = 0  # where positive, train so many and validate after each, instead of measuring for some seconds
    limit_seconds: float = float("inf")  # begin no further epoch after so long
    seed: int = 1


@dataclass(frozen=True, kw_only=True)
class Job(Budget):
    """What a peer is asked to do: one model on one file of events."""

    events: str  # CSV with user, item, place (in the user's history) and part (train, validation, test)
    model: Literal["sasrec", "bert4rec", "gru4rec"]
    width: int
    layers: int
    heads: int
    hidden: int
    max_length: int
    dropout: float
    batch_size: int  # rows of a batch in the peer's own sense: sequences, or prefixes
    loss: Literal["softmax", "sampled_softmax"] = "softmax"
    negatives: int = 0
    mask_share: float = 0.0  # of BERT4Rec
    learning_rate: float = 1e-3
    precision: Literal["float32", "bfloat16"] = "float32"


AnyJob = TypeVar("AnyJob", bound=Budget)


class Stopwatch:
    """Seconds of wall time and of processor time of this process, of all threads together, while it runs."""

    def __init__(self) -> None:
        self._wall = self._cpu = 0.0
        self._since: tuple[float, float] | None = None

    def start(self) -> None:
        """Run, unless it does."""
        self._since = self._since or (time.perf_counter(), time.process_time())

    def stop(self) -> None:
        """Stand still."""
        self._wall, self._cpu = self.wall, self.cpu
        self._since = None

    @property
    def wall(self) -> float:
        """Seconds of wall time so far."""
        return self._wall + (time.perf_counter() - self._since[0] if self._since else 0.0)

    @property
    def cpu(self) -> float:
        """Seconds of processor time so far."""
        return self._cpu + (time.process_time() - self._since[1] if self._since else 0.0)

    def __enter__(self) -> "Stopwatch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass
class Meter:
    """Counts the optimizer steps after the warm-up, and says when they are enough.

    A step runs from the end of the step before, so that it holds the making of its batch.
    """

    seconds: float
    warm_up: int
    watch: Stopwatch = field(default_factory=Stopwatch)
    seen: int = 0
    steps: int = 0
    rows: int = 0
    targets: int = 0

    @classmethod
    def of(cls, job: Budget) -> "Meter":
        """The job's: without an end where whole epochs are asked for."""
        return cls(float("inf") if job.epochs else job.seconds, job.warm_up)

    def step(self, rows: int, targets: int) -> bool:
        """Note a finished step: its rows, and the real targets that entered its loss. Is it enough?"""
        self.seen += 1
        if self.seen > self.warm_up:
            self.steps, self.rows, self.targets = self.steps + 1, self.rows + rows, self.targets + targets
        elif self.seen == self.warm_up:
            self.watch.start()
        return self.enough

    def pause(self) -> None:
        """Leave out what comes now."""
        self.watch.stop()

    def resume(self) -> None:
        """Go on with the steps."""
        if self.seen >= self.warm_up:
            self.watch.start()

    @property
    def enough(self) -> bool:
        """Whether the time is up, and two steps were seen: one alone says little."""
        return self.steps >= 2 and self.watch.wall >= self.seconds

    def rates(self, epoch_rows: int) -> dict[str, Any]:
        """What was seen; the seconds of an epoch of `epoch_rows` rows are extrapolated from it."""
        share = self.rows / epoch_rows
        return {
            "steps": self.steps,
            "targets": self.targets,
            "wall_seconds": self.watch.wall,
            "cpu_seconds": self.watch.cpu,
            "targets_per_second": self.targets / self.watch.wall,
            "targets_per_cpu_second": self.targets / self.watch.cpu,
            "epoch_rows": epoch_rows,
            "epoch_targets": self.targets / share,
            "epoch_seconds": self.watch.wall / share,
            "epoch_cpu_seconds": self.watch.cpu / share,
            "epochs_seen": share,
            "part_of_an_epoch": share < 1,
        }


class Curve:
    """Validation values by epoch, with the time they took: of training alone, and with the validations."""

    def __init__(self, job: Budget) -> None:
        self._job = job
        self.training, self.everything = Stopwatch(), Stopwatch()
        self.points: list[dict[str, float]] = []

    def begin(self) -> None:
        """Training begins, or goes on after a validation; from its beginning on the peak of memory is looked for."""
        if not self.points:
            forget_peak()
        self.training.start()
        self.everything.start()

    def validated(self, ndcg: float) -> bool:
        """Note the value after one more epoch; `training` was stopped before it was computed. Was it the last?"""
        self.points.append(
            {
                "epoch": len(self.points) + 1,
                "ndcg@10": ndcg,
                "training_seconds": self.training.wall,
                "training_cpu_seconds": self.training.cpu,
                "seconds": self.everything.wall,
                "cpu_seconds": self.everything.cpu,
            }
        )
        return len(self.points) >= self._job.epochs or self.everything.wall >= self._job.limit_seconds


def events(job: Job) -> "pd.DataFrame":
    """The job's events in order of place, ids as text."""
    import pandas as pd

    table = pd.read_csv(job.events, dtype={"user": str, "item": str, "place": np.int64, "part": "category"})
    return table.sort_values(["user", "place"], kind="stable", ignore_index=True)


def ndcg(ranks: Iterable[float], users: int) -> float:
    """Mean over `users` of 1 / log2(1 + rank) for the targets' ranks, from 1; what is beyond K, or missing, counts 0."""
    found = np.asarray(list(ranks), dtype=np.float64)
    return float((1 / np.log2(1 + found[found <= K])).sum() / users)


def prepare_process(job: Budget) -> None:
    """Give torch the job's threads and seed."""
    import torch

    torch.set_num_threads(job.threads)
    torch.set_num_interop_threads(1)
    torch.manual_seed(job.seed)
    np.random.seed(job.seed)


def without_attention_dropout(model: "torch.nn.Module") -> None:
    """Take dropout from the weights of stock attention: turborec has none there, and it costs the others their fast kernel."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0


def forget_peak() -> None:
    """Begin anew with the most memory that this process has held: the preparation of data is measured apart."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_mib() -> float:
    """The most MiB this process has held in memory at once."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of installed packages."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def serve(kind: type[AnyJob], measure: Callable[[AnyJob], dict[str, Any]]) -> None:
    """Read a job from standard input and write the answer to standard output; what libraries print goes to the other."""
    job = kind(**json.load(sys.stdin))
    load = os.getloadavg()[0]
    with contextlib.redirect_stdout(sys.stderr):
        answer = measure(job)
    print(json.dumps({"load_average": load, **answer}))
