"""What the tests of checkpoints run in processes of their own."""

import signal
from ctypes import c_longlong
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from turborec.engine.checkpoint import keep, load_latest, save, sweep
from turborec.engine.lock import lock


def save_for_ever(folder: Path, committed: "c_longlong") -> None:
    """Save step after step, each twice so that it is replaced as well, and tell which was committed last."""
    torch.set_num_threads(1)
    sweep(folder)
    found = load_latest(folder, strict=True)
    step = found.step if found else 0
    while True:
        step += 1
        for _ in range(2):
            save(folder, step, {"model": {"weight": torch.full((50_000,), float(step))}}, {"step": step})
            committed.value = step
        keep(folder, last=2)


def hold(folder: Path, held: Event) -> None:
    """Lock the folder and wait to be killed."""
    with lock(folder):
        held.set()
        signal.pause()
