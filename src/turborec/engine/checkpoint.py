"""Checkpoints: folders of safetensors and JSON, committed by one rename and verified by a manifest.

    step_000123/
        model.safetensors, optimizer.safetensors, ...   one file for each group of tensors
        state.json                                      everything that is not a tensor
        manifest.json                                   schema, step, size and SHA-256 of every other file

No file format used here notices a flipped bit, so the manifest does. Nothing is pickled. Which checkpoint is the
latest is computed, never stored.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from turborec.engine.lock import alive
from turborec.errors import UserError
from turborec.files import sync

SCHEMA = 1
"""Raised when the meaning of a file changes, so that an older version refuses what it would misread."""

MANIFEST = "manifest.json"
STATE = "state.json"

_COMMITTED = re.compile(r"step_(\d{6,})")
_LEFTOVER = re.compile(r"(step_\d{6,})\.(tmp|old)\.(\d+)")
_MARGIN_BYTES = 2**20  # the manifest, the headers and what a file system rounds up

log = logging.getLogger(__name__)


class DamagedCheckpointError(UserError):
    """The files of a checkpoint are not those that were written."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved, verified; the tensors lie on the CPU."""

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Commit a checkpoint of `step` and return its folder; one that is already there is replaced.

    `tensors` holds one group for each file, `state` plain JSON (a tuple comes back as a list). Whatever goes wrong
    (`UserError` where it is the disk), earlier checkpoints stay as they were and no partial one is seen.
    """
    final = folder / f"step_{step:06d}"
    temporary = folder / f"{final.name}.tmp.{os.getpid()}"
    text = json.dumps(state, indent=1, allow_nan=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_space(folder, len(text) + sum(t.nbytes for group in tensors.values() for t in group.values()))
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, group in tensors.items():
            save_file(_storable(group), temporary / f"{name}.safetensors")
        (temporary / STATE).write_text(text, encoding="utf-8")
        (temporary / MANIFEST).write_text(_describe(temporary, step), encoding="utf-8")
        for path in [*temporary.iterdir(), temporary]:
            sync(path)
        _commit(temporary, final)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{_reason(error)}: step {step} was not saved in {folder}. {_kept(folder)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def load(path: Path) -> Checkpoint:
    """Read a checkpoint after comparing every file with the manifest; `DamagedCheckpointError` names what differs."""
    manifest = _read_manifest(path)
    for name, fact in manifest["files"].items():
        _check_file(path / name, fact)
    try:
        tensors = {f.stem: load_file(f) for f in sorted(path / n for n in manifest["files"]) if f.suffix != ".json"}
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise DamagedCheckpointError(f"The checkpoint {path} cannot be read: {error}.") from error
    return Checkpoint(path, manifest["step"], tensors, state)


def checkpoints(folder: Path) -> list[Path]:
    """The committed checkpoints in the order of their steps; a folder without a manifest is left out with a warning."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if not _COMMITTED.fullmatch(path.name):
            continue
        if (path / MANIFEST).is_file():
            found.append(path)
        else:
            log.warning("%s is left out: without %s it is not a whole checkpoint.", path, MANIFEST)
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(path.name.removeprefix("step_"))


def latest(folder: Path) -> Path | None:
    """The committed checkpoint of the highest step, damaged or not."""
    found = checkpoints(folder)
    return found[-1] if found else None


def load_chosen(folder: Path) -> dict[str, Tensor] | None:
    """The model's weights that validation chose so far, averaged ones where there are; None where it has chosen none."""
    newest = load_latest(folder)
    if newest is None or (step := newest.state["best_step"]) is None:
        return None
    best = newest if step == newest.step else load(folder / f"step_{step:06d}")
    return {**best.tensors["model"], **best.tensors.get("average", {})}


def load_latest(folder: Path, strict: bool = False) -> Checkpoint | None:
    """The newest good checkpoint, None where none was committed.

    A damaged one is passed over with a warning, or raises at once if `strict`; it raises as well when all are damaged.
    """
    damage = None
    for path in reversed(checkpoints(folder)):
        try:
            return load(path)
        except DamagedCheckpointError as error:
            if strict:
                raise
            log.warning("%s The checkpoint before it is tried.", error)
            damage = error
    if damage:
        raise UserError(f"Every checkpoint in {folder} is damaged. The oldest: {damage} Train again in a new folder.")
    return None


def keep(folder: Path, last: int, protect: Set[int] = frozenset()) -> None:
    """Delete all but the `last` newest checkpoints; the steps in `protect` (best, resumed, just saved) always stay.

    A delete that fails is a warning: training matters more than tidiness.
    """
    found = checkpoints(folder)
    for path in found[: max(0, len(found) - last)]:
        if step_of(path) in protect:
            continue
        doomed = path.with_name(f"{path.name}.tmp.{os.getpid()}")
        try:
            # Renamed first, so that a crash in the middle of deleting leaves no checkpoint that lacks files.
            path.replace(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            log.warning("The old checkpoint %s was not deleted: %s.", path, error.strerror)


def sweep(folder: Path) -> None:
    """Clear away what dead writers left, and put back a checkpoint whose replacement never arrived; call before saving."""
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _LEFTOVER.fullmatch(path.name)
        # A restarted container hands out the same process ids: what bears ours was left by the process before us.
        if not match or (int(match[3]) != os.getpid() and alive(int(match[3]))):
            continue
        committed = folder / match[1]
        if match[2] == "old" and not committed.exists():
            path.replace(committed)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _storable(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, each with memory of its own, as safetensors wants them."""
    storable: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in group.items():
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        storable[name] = plain.clone() if place in seen else plain
        seen.add(place)
    return storable


def _check_space(folder: Path, size: int) -> None:
    needed, free = size + _MARGIN_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        sizes = f"{needed / 2**20:,.1f} MiB are needed, {free / 2**20:,.1f} MiB are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({sizes})")


def _describe(folder: Path, step: int) -> str:
    """The manifest of the files in `folder`, with a hash of itself."""
    files = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(folder.iterdir())}
    content = {"schema": SCHEMA, "step": step, "files": files}
    return json.dumps({**content, "sha256": _seal(content)}, indent=1)


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _commit(temporary: Path, final: Path) -> None:
    replaced = final.with_name(f"{final.name}.old.{os.getpid()}")
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.replace(replaced)
    try:
        temporary.replace(final)
    except OSError:
        if replaced.exists():
            replaced.replace(final)
        raise
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _reason(error: OSError | SafetensorError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    full = os.strerror(errno.ENOSPC)
    return full if full in str(error) else str(error).rstrip(".")


def _kept(folder: Path) -> str:
    try:
        path = latest(folder)
    except OSError:
        return "The folder cannot be read any more."
    return f"The checkpoint {path.name} is intact." if path else "No earlier checkpoint is there."


def _read_manifest(path: Path) -> dict[str, Any]:
    if not (path / MANIFEST).is_file():
        raise DamagedCheckpointError(f"{path} is not a whole checkpoint: {MANIFEST} is missing.")
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        stated = manifest.pop("sha256")
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise DamagedCheckpointError(f"The checkpoint {path} is damaged: {MANIFEST} cannot be read ({error}).") from error
    if (got := _seal(manifest)) != stated:
        raise DamagedCheckpointError(_differs(path / MANIFEST, f"SHA-256 {got}", str(stated)))
    if manifest["schema"] != SCHEMA:
        formats = f"{path} has checkpoint format {manifest['schema']}, this version reads {SCHEMA}"
        raise UserError(f"{formats}: open it with the version of turborec that wrote it.")
    if _COMMITTED.fullmatch(path.name) and step_of(path) != manifest["step"]:
        raise DamagedCheckpointError(_differs(path / MANIFEST, f"step {manifest['step']}", str(step_of(path))))
    return dict(manifest)


def _check_file(path: Path, fact: Mapping[str, Any]) -> None:
    try:
        size = path.stat().st_size
        if size != fact["bytes"]:
            raise DamagedCheckpointError(_differs(path, f"{size} bytes", str(fact["bytes"])))
        if (got := _sha256(path)) != fact["sha256"]:
            raise DamagedCheckpointError(_differs(path, f"SHA-256 {got}", fact["sha256"]))
    except OSError as error:
        raise DamagedCheckpointError(f"The checkpoint {path.parent} is damaged: {path.name}: {error.strerror}.") from error


def _differs(path: Path, got: str, stated: str) -> str:
    return f"The checkpoint {path.parent} is damaged: {path.name} has {got}, not {stated}."
