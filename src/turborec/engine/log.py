"""What a run writes down: metrics as JSON lines and in trackers, a log, its status and its surroundings."""

import json
import logging
import math
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch

from turborec import __version__
from turborec.engine.hardware import cores
from turborec.engine.trackers import Mirror, TensorBoard, Tracking, numbers, open_trackers, replay
from turborec.errors import UserError
from turborec.files import write_whole
from turborec.shown import visible

METRICS = "metrics.jsonl"
STATUS = "status.json"
LOG = "log.txt"

Value = float | int | str | None
Status = Literal["running", "finished", "interrupted", "failed"]

log = logging.getLogger(__name__)


class MetricsLog:
    """Appends `{"kind": "train", "step": 12, "time": 1790000000.1, "loss": 0.5}` and the like to `metrics.jsonl`.

    Each line is handed to the system at once. Numbers are mirrored as `kind/name` to TensorBoard where it is installed,
    and to the trackers that are asked for.
    A number that is not finite is written as null, since JSON has no other word for it.
    """

    def __init__(self, folder: Path, resumed_step: int = 0, tracking: Tracking | None = None) -> None:
        """Go on after `resumed_step`: records after it are dropped, as they will come again. 0 starts afresh."""
        path = folder / METRICS
        self._trackers: list[Mirror] = []
        if tracking and tracking.kinds:
            told = {record["kind"]: record["step"] for record in read_metrics(folder)}
            self._trackers = open_trackers(tracking, folder, told)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _drop_after(path, resumed_step)
            # Unbuffered, so that what a full disk refuses is not tried again when the file is closed.
            self._file = path.open("ab", buffering=0)
            self._events = _events(folder, purge_step=resumed_step + 1 if resumed_step else 0)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}.") from error
        replay(self._trackers, read_metrics(folder) if self._trackers else ())

    def write(self, kind: str, step: int, values: Mapping[str, Value]) -> None:
        """Append one record; write those of a step before its checkpoint, so that resuming loses none."""
        plain = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
        record = {"kind": kind, "step": step, "time": round(time.time(), 3), **plain}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            while line := line[self._file.write(line) :]:
                pass  # the rest of a line that did not fit says why
            for mirror in [*self._events, *self._trackers]:
                mirror.write(kind, step, numbers(values))
        except OSError as error:
            folder = Path(self._file.name).parent
            raise UserError(f"The records in {folder} cannot be written: {error.strerror}. What is saved is intact.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()
        for events in self._events:
            try:
                events.close()
            except OSError as error:
                log.warning("The last TensorBoard events were not written: %s.", error.strerror)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl` in order; a last line that a crash cut short is left out."""
    return [json.loads(line) for line in _whole_lines(folder / METRICS)]


@contextmanager
def logging_to(folder: Path | None, level: int = logging.INFO) -> Iterator[None]:
    """Append turborec's log to `log.txt` in `folder`, or send it to standard error if None, while the block runs.

    What is of a lower level is left out.
    """
    logger = logging.getLogger("turborec")
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / LOG, encoding="utf-8") if folder else _StandardError()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    handler.setLevel(level)
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        handler.close()


def write_status(folder: Path, state: Status, reason: str = "", code: int = 0) -> None:
    """Replace `status.json` in one step; failing to is a warning, so that it cannot hide the reason it was to tell."""
    facts = {"state": state, "reason": reason, "code": code, "pid": os.getpid(), "host": socket.gethostname(), "time": _now()}
    try:
        write_whole(folder / STATUS, json.dumps(facts, indent=1))
    except UserError as error:
        log.warning("%s", error)


def state_of(folder: Path) -> str | None:
    """What `status.json` says a run's state is, where it can be read."""
    try:
        return str(json.loads((folder / STATUS).read_text(encoding="utf-8"))["state"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def environment() -> dict[str, Any]:
    """What a result depends on besides its recipe: code, versions, hardware and settings, as plain JSON."""
    commit, dirty = _commit(Path(__file__).parent)
    versions = {"turborec": __version__, "python": platform.python_version()}
    return {
        "commit": commit,
        "dirty": dirty,
        "command": shlex.join(["turborec", *sys.argv[1:]]),
        "versions": versions | {"torch": torch.__version__, "numpy": np.__version__},
        "hardware": {
            "platform": platform.platform(),
            "processor": _processor(),
            "cores": cores(),
            "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "cuda_float32_products": torch.backends.cuda.matmul.fp32_precision,  # ieee, tf32, or none: the default
        "date": _now(),
    }


class _StandardError(logging.Handler):
    """Writes to whatever `sys.stderr` is at the time: a progress bar puts itself there to keep lines above it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(visible(self.format(record)), file=sys.stderr)


def _events(folder: Path, purge_step: int) -> list[Mirror]:
    """TensorBoard, unless it is not installed."""
    try:
        return [TensorBoard(folder, purge_step)]
    except ImportError:
        log.info("TensorBoard is not installed: metrics are written to %s alone.", METRICS)
        return []


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file of JSON lines without a torn last one; `UserError` where another line is no JSON object."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            whole = isinstance(json.loads(line), dict)
        except ValueError:
            whole = False
        if not whole and number == len(lines) - 1:
            return lines[:-2]
        if not whole:
            raise UserError(f"{path}, line {number} is not a JSON object. Mend the line, or move the file away.")
    return lines[:-1]


def _drop_after(path: Path, step: int) -> None:
    if path.exists():
        kept = [line + "\n" for line in _whole_lines(path) if step and json.loads(line)["step"] <= step]
        temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _commit(folder: Path) -> tuple[str | None, bool | None]:
    """The commit `folder` is checked out from and whether anything but results differs; None where git does not hold it."""

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # An installed package may lie inside some other project's checkout, whose commit says nothing about it.
        git("ls-files", "--error-unmatch", "log.py")
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", ":/", ":(top,exclude)benchmarks/results"))
    except (OSError, subprocess.SubprocessError):
        return None, None
