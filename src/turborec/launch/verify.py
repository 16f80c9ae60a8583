"""Whether a recipe's training that is killed and resumed equals one that never stopped: with real processes and real kills."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turborec.data.store import sha256
from turborec.engine import monitor
from turborec.errors import UserError
from turborec.recipe import dump
from turborec.recipes import AnyRecipe

EPOCHS = 2


@dataclass(frozen=True)
class Verdict:
    """What came of it."""

    steps: int  # of the training
    kills: tuple[int, ...]  # after which steps it was killed
    hashes: dict[str, str]  # of each file of the last checkpoint, of the training that never stopped
    differing: tuple[str, ...]  # files, or records of metrics, that came out otherwise after the kills

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.differing


def verify(recipe: AnyRecipe, store: Path, steps: int, kills: int, processes: int = 1, seed: int = 0) -> Verdict:
    """Train about `steps` steps twice, the second time killed (SIGKILL, every process) `kills` times at random moments."""
    smaller = recipe.model_copy(
        update={
            "train": recipe.train.model_copy(update={"epochs": EPOCHS}),
            "then": (),
            "anchors": False,
            "evaluation": recipe.evaluation.model_copy(update={"max_users": 200}),
            "checkpoints": recipe.checkpoints.model_copy(update={"minutes": 1e-3}),
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "recipe.yaml"
        path.write_text(dump(smaller), encoding="utf-8")
        words = ["--store", str(store), "--steps", str(max(1, steps // EPOCHS)), "--json"]
        whole, killed = Path(scratch) / "whole", Path(scratch) / "killed"
        _finish(_started([str(path), "--out", str(whole), *words], processes))
        total = _steps(whole)
        draw = random.Random(seed)
        after: list[int] = []
        began = ["--resume", str(killed)]
        for moment in sorted(draw.uniform(1, total) for _ in range(kills)):
            process = _started([*(began if after else [str(path), "--out", str(killed)]), *words], processes)
            done = _kill_after(process, killed, moment)
            after.append(done)
        _finish(_started([*began, *words] if after else [str(path), "--out", str(killed), *words], processes))
        hashes, records = _outcome(whole)
        found = _outcome(killed)
        differing = [name for name in hashes if hashes[name] != found[0].get(name)]
        differing += ["metrics.jsonl"] * (records != found[1])
        return Verdict(total, tuple(after), hashes, tuple(differing))


def _started(words: list[str], processes: int) -> "subprocess.Popen[bytes]":
    how = ["train"] if processes == 1 else ["launch", "local", "--processes", str(processes)]
    command = [sys.executable, "-m", "turborec", *how, *words]
    # A group of its own, so that one kill reaches all of them.
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def _finish(process: "subprocess.Popen[bytes]") -> None:
    said = process.communicate()[1]
    if process.returncode:
        raise UserError(f"A training that nobody killed ended with {process.returncode}: {said.decode()[-2000:].strip()}")


def _kill_after(process: "subprocess.Popen[bytes]", folder: Path, moment: float) -> int:
    """Kill every process at some point of the step after which `moment` lies: the steps that were done."""
    while process.poll() is None and _steps(folder) < int(moment):
        time.sleep(0.002)
    time.sleep(moment % 1 * 0.05)
    for group in (process.pid, *_groups_of(process.pid)):
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate()
    return _steps(folder)


def _groups_of(parent: int) -> list[int]:
    """The process groups of a launcher's children, each of which torchrun gives one of its own."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(child) for child in children.read_text().split()] if children.exists() else []


def _steps(folder: Path) -> int:
    log = folder / "metrics.jsonl"
    return log.read_bytes().count(b'"kind": "train"') if log.exists() else 0


def _outcome(folder: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Hashes of the last checkpoint's tensors, and all records, times aside."""
    last = max((folder / "checkpoints").glob("step_??????"))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    timed = ("time", "targets_per_second")
    lasting = [record for record in records if record["kind"] not in monitor.MEASURED]
    plain = [{name: value for name, value in record.items() if name not in timed} for record in lasting]
    return {path.name: sha256(path) for path in sorted(last.glob("*.safetensors"))}, plain
