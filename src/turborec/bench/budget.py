"""The largest batches that fit into memory, by trial: each trial is a process of its own, so that one that fails costs nothing.

What was found is remembered below the home folder, for this device, recipe and data.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from turborec.assembly import Assembly, assemble
from turborec.data.loader import Some
from turborec.data.store import Store
from turborec.engine import hardware, loop
from turborec.errors import UserError
from turborec.files import write_whole
from turborec.recipes import AnyRecipe
from turborec.stores import training_batches

logger = logging.getLogger("turborec")

CLOSE = 1.2
"""The search ends where a budget that fits and one that does not are this near."""

RESERVE = 0.9
"""Share of the free memory that a trial may take: validation and whatever else runs want some, too."""

FILE = "batches.json"
"""What is remembered, below the home folder."""


@dataclass(frozen=True)
class Trial:
    """One budget that was tried."""

    tokens: int
    peak: int | None  # bytes; None where they did not suffice


@dataclass(frozen=True)
class Budget:
    """The largest `batches.tokens` that was seen to fit."""

    tokens: int
    whole: bool  # it holds an epoch in one batch: more would change nothing
    trials: tuple[Trial, ...]
    remembered: bool = False


def largest(recipe: AnyRecipe, store: Store, device: str, home: Path) -> Budget:
    """Double the recipe's budget while it fits, halve it while it does not, then close in; or take what was found before."""
    key, remembered = _key(recipe, store, device), _remembered(home)
    batches = training_batches(recipe, store)
    everything = int(batches.widths[-1]) * len(batches.epoch(0).rows.users)
    trials: dict[int, Trial] = {}

    def fits(tokens: int) -> bool:
        if tokens not in trials:
            trials[tokens] = Trial(tokens, _try(recipe, store, device, tokens))
            said = f"{peak / 2**20:,.0f} MiB" if (peak := trials[tokens].peak) else "out of memory"
            logger.info(f"Tried {tokens:,} tokens a batch: {said}")
        return trials[tokens].peak is not None

    if (known := remembered.get(key)) and fits(known):  # less memory may be free than there was, or more
        if known >= everything or not fits(min(round(CLOSE * known), everything)):
            return Budget(known, known >= everything, tuple(trials.values()), remembered=True)
        known = min(round(CLOSE * known), everything)
    good, bad = known or min(recipe.batches.tokens, everything), None
    while not fits(good):
        if good <= recipe.batches.max_length:
            raise UserError("Not even one row fits into memory: lower batches.max_length or model.width.")
        good, bad = max(recipe.batches.max_length, good // 2), good
    while bad is None and good < everything:
        tried = min(2 * good, everything)
        good, bad = (tried, None) if fits(tried) else (good, tried)
    while bad is not None and bad > CLOSE * good:
        tried = round(math.sqrt(good * bad))
        good, bad = (tried, bad) if fits(tried) else (good, tried)
    found = Budget(good, good >= everything, tuple(trials.values()))
    home.mkdir(parents=True, exist_ok=True)
    write_whole(home / FILE, json.dumps({**remembered, key: found.tokens}, indent=1))
    return found


def trial(recipe: AnyRecipe, store: Store, device: str) -> int | None:
    """Peak bytes of this process, or of the accelerator, after the steps that need most; None where they did not suffice."""
    hardware.keep_freed_memory()
    try:
        assembly = assemble(recipe, store, device)
        if assembly.device.type == "cpu":
            _limit(int(RESERVE * hardware.free_memory(assembly.device)))
        else:
            free, everything = torch.cuda.mem_get_info(assembly.device)
            torch.cuda.set_per_process_memory_fraction(RESERVE * free / everything, assembly.device)
        _widest_steps(assembly)
    except (MemoryError, RuntimeError) as error:
        if not hardware.out_of_memory(error) and "alloc" not in str(error).lower():
            raise
        return None
    if assembly.device.type == "cuda":
        return torch.cuda.max_memory_allocated(assembly.device)
    return hardware.peak_memory()


def _widest_steps(assembly: Assembly) -> None:
    """The batches with the most positions, of the widest and of any width, and with the optimizer's state beside them."""
    stage = assembly.recipe.stages[0]
    epoch = training_batches(assembly.recipe, assembly.store).epoch(0)
    positions = [len(rows) * width for rows, width in zip(epoch.order, epoch.width, strict=True)]
    widest, most = (
        max(range(len(epoch)), key=lambda s: (epoch.width[s], positions[s])),
        max(range(len(epoch)), key=positions.__getitem__),
    )
    chosen = [most, widest, most]  # the first step makes the optimizer's state
    for _ in loop.fit(loop.start(assembly.model, stage, assembly.device), Some(epoch, chosen), stage, assembly.device):
        pass


def _limit(size: int) -> None:
    """Let an allocation beyond `size` bytes fail in this process, before the system kills one to make room."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def _try(recipe: AnyRecipe, store: Store, device: str, tokens: int) -> int | None:
    changed = recipe.model_copy(update={"batches": recipe.batches.model_copy(update={"tokens": tokens})})
    command = [sys.executable, "-m", "turborec.bench", "--trial", "--store", str(store.folder), "--device", device]
    done = subprocess.run(command, input=changed.model_dump_json(), capture_output=True, text=True, check=False)
    if done.returncode < 0:
        return None  # killed, as the system does for want of memory
    if done.returncode:
        raise UserError(f"A trial with {tokens:,} tokens a batch failed: {done.stderr.strip()[-500:]}")
    peak: int | None = json.loads(done.stdout)["peak"]
    return peak


def _key(recipe: AnyRecipe, store: Store, device: str) -> str:
    """The same for one kind of device with as much memory, and for recipes that differ in the size of their batches alone."""
    chosen = hardware.device_of(device)
    if chosen.type == "cuda":
        where = f"{torch.cuda.get_device_name(chosen)} {torch.cuda.get_device_properties(chosen).total_memory}"
    else:
        where = f"{platform.node()} {platform.machine()} {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')}"
    tree = recipe.model_dump(mode="json", include={"model", "train", "batches", "data"})
    del tree["batches"]["tokens"]
    told = json.dumps([where, store.card["key"], tree, torch.__version__], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _remembered(home: Path) -> dict[str, int]:
    """Budgets by key."""
    try:
        found = json.loads((home / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, int)} if isinstance(found, dict) else {}
