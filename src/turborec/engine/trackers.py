"""Where a run's numbers are mirrored beside `metrics.jsonl`: TensorBoard, Weights & Biases, trackio.

A tracker changes nothing that is computed, so it is no part of a recipe. One that fails while the run goes on is left
out with a warning: the numbers are in `metrics.jsonl` anyway.
"""

import json
import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from turborec.errors import UserError, closest
from turborec.files import write_whole
from turborec.recipe import Tree, read

FACTS = "tracking.json"
"""In the run folder: the id by which trackers know the run, and up to which steps each was told."""

log = logging.getLogger(__name__)


class Mirror(Protocol):
    """What is told every number of a run; text is left out."""

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of one record as `kind/name`; steps do not go backwards."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


@dataclass(frozen=True)
class Tracking:
    """Which trackers are told, and in which project of theirs."""

    kinds: tuple[str, ...] = ()
    project: str = "turborec"

    def require(self) -> None:
        """Refuse a kind that is unknown or not installed, before anything has begun."""
        for kind in self.kinds:
            if kind not in _KINDS:
                raise UserError(f"No tracker is called {kind!r}{closest(kind, list(_KINDS))}.")
            if find_spec(kind) is None:
                raise UserError(f"Tracking by {kind} needs its package: pip install 'turborec[{kind}]'.")


@dataclass(frozen=True)
class _Identity:
    """How a tracker knows a run, in every process that goes on with it."""

    folder: Path
    project: str
    id: str
    recipe: Tree


class TensorBoard:
    """Event files in the run folder, written at once: a writer with a thread of its own may hang where the disk is full."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        """Hides events from `purge_step` on; an ImportError where TensorBoard is not installed."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2.Summary
        place = folder / "tensorboard"
        place.mkdir(parents=True, exist_ok=True)
        seconds, rest = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}.{rest}"
        self._file = _Whole((place / name).open("wb", buffering=0))
        self._records = RecordWriter(self._file)
        self._add({"file_version": "brain.Event:2"})
        started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add({"step": purge_step, "session_log": started})

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Write each number as a scalar."""
        scalars = [self._summary.Value(tag=f"{kind}/{name}", simple_value=value) for name, value in values.items()]
        self._add({"step": step, "summary": self._summary(value=scalars)})

    def close(self) -> None:
        """Close the event file."""
        self._file.close()

    def _add(self, facts: Mapping[str, Any]) -> None:
        self._records.write(self._event(wall_time=time.time(), **facts).SerializeToString())


@dataclass
class _Whole:
    """A raw file in which a record is written to its end: what of it does not fit says why."""

    raw: Any

    def write(self, data: bytes) -> None:
        while data := data[self.raw.write(data) :]:
            pass

    def close(self) -> None:
        self.raw.close()


class _Wandb:
    """Weights & Biases; its files lie in the run folder, and `WANDB_MODE=offline` keeps them there."""

    def __init__(self, known: _Identity) -> None:
        import wandb

        offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun")
        self._run = wandb.init(
            project=known.project,
            name=known.folder.name,
            id=known.id,
            resume=None if offline else "allow",  # offline files of one id are put together when they are synced
            dir=known.folder,
            config=known.recipe,
            settings=wandb.Settings(console="off"),
        )

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self._run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """trackio, in its own folder (TRACKIO_DIR), where its dashboard looks for runs."""

    def __init__(self, known: _Identity) -> None:
        import trackio

        self._trackio: Any = trackio
        name = f"{known.folder.name}-{known.id[:6]}"  # it knows runs by their names
        self._run: Any = trackio.init(project=known.project, name=name, resume="allow", config=known.recipe, embed=False)

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self._run.log({f"{kind}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self._trackio.finish()


_KINDS: dict[str, Callable[[_Identity], Mirror]] = {"wandb": _Wandb, "trackio": _Trackio}
KINDS = tuple(_KINDS)


@dataclass
class _Guarded:
    """A tracker whose failure is a warning, and that is not told again what it knows from before an interruption."""

    kind: str
    tracker: Mirror | None
    told: dict[str, int] = field(default_factory=dict)  # the last step by kind of record

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        if self.tracker is not None and step > self.told.get(kind, -1):
            self._try(lambda tracker: tracker.write(kind, step, values))

    def close(self) -> None:
        if self.tracker is not None:
            self._try(lambda tracker: tracker.close())

    def _try(self, action: Callable[[Mirror], None]) -> None:
        try:
            with redirect_stdout(sys.stderr):  # what a command prints is for whoever asked for it
                action(self.tracker)  # type: ignore[arg-type]
        except Exception as error:
            log.warning("%s is left out from here on: %s: %s. The run goes on.", self.kind, type(error).__name__, error)
            failed, self.tracker = self.tracker, None
            with suppress(Exception):
                failed.close()  # type: ignore[union-attr]


def remembered(folder: Path) -> Tracking | None:
    """The trackers that were told about the run in `folder` when it was last under way; None where there were none."""
    facts = _facts(folder / FACTS, "")
    return Tracking(tuple(facts["told"]), facts["project"]) if facts["told"] else None


def open_trackers(tracking: Tracking, folder: Path, told: Mapping[str, int]) -> list[Mirror]:
    """The trackers of the run in `folder`; `told`: the last steps by kind of record that `metrics.jsonl` held so far.

    A UserError where one cannot be begun.
    """
    tracking.require()
    folder.mkdir(parents=True, exist_ok=True)
    facts = _facts(folder / FACTS, tracking.project)
    if facts["project"] != tracking.project:
        log.warning("The run stays in the project %s, where it began.", facts["project"])
    for kind in tracking.kinds:
        before = facts["told"].get(kind)
        facts["told"][kind] = {} if before is None else {k: max(told.get(k, -1), before.get(k, -1)) for k in {*told, *before}}
    recipe = read(folder / "recipe.yaml") if (folder / "recipe.yaml").is_file() else {}
    known = _Identity(folder.resolve(), facts["project"], facts["id"], recipe)
    mirrors: list[Mirror] = [_Guarded(k, _begin(k, known), facts["told"][k]) for k in dict.fromkeys(tracking.kinds)]
    write_whole(folder / FACTS, json.dumps(facts, indent=1))
    return mirrors


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """What of a record a tracker is told."""
    return {name: value for name, value in values.items() if isinstance(value, float | int)}


def replay(mirrors: Iterable[Mirror], records: Iterable[Mapping[str, Any]]) -> None:
    """Tell records of `metrics.jsonl` from before; a tracker that knows them takes no notice."""
    mirrors = list(mirrors)
    for record in records:
        values = {name: value for name, value in record.items() if name not in ("kind", "step", "time")}
        for mirror in mirrors:
            mirror.write(record["kind"], record["step"], numbers(values))


def _facts(path: Path, project: str) -> dict[str, Any]:
    """What `tracking.json` says, or how a run begins to be tracked in `project`."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {"id": str(facts["id"]), "project": str(facts["project"]), "told": dict(facts["told"])}
    except FileNotFoundError:
        return {"id": uuid.uuid4().hex[:16], "project": project, "told": {}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}). Move it away, and trackers see a new run.") from error


def _begin(kind: str, known: _Identity) -> Mirror:
    try:
        with redirect_stdout(sys.stderr):
            return _KINDS[kind](known)
    except Exception as error:
        advice = " Log in with `wandb login`, or set WANDB_MODE=offline." if kind == "wandb" else ""
        raise UserError(
            f"{kind} cannot be told about this run ({type(error).__name__}: {error}).{advice} To do without it, leave out "
            f"--track {kind} and move {FACTS}, if there is one, out of the run folder."
        ) from error
