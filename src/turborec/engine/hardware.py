"""What the machine does fast, found out rather than assumed."""

import ctypes
import gc
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch

from turborec.errors import UserError

Precision = Literal["auto", "float32", "bfloat16", "float16"]


SHAPES = 128
"""Of products whose code is kept: those of a step."""

LOAD = 0.2
"""Other work a processor may have before wall time says little: a load average of this much per core."""


def device_of(name: str = "auto") -> torch.device:
    """The device a run uses: the named one, or the first accelerator, or the processor."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(1, device=name).device
        if device.type == "meta":
            raise RuntimeError("It holds no numbers.")
        return device
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"The device {name!r} cannot be used: {why}. Try cpu, or auto.") from error


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The type matrix products run in under `precision` on `device`.

    `auto` takes bfloat16 where the hardware is fast at it: elsewhere its emulation is up to tens of times slower than
    float32 (pytorch issue 146508). float16 on a processor is never fast.
    """
    if precision == "auto":
        native = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else _cpu_is_fast_at_bfloat16()
        return torch.bfloat16 if native else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def _cpu_is_fast_at_bfloat16() -> bool:
    """Whether bfloat16 products are faster than float32 ones: with AMX, Arm's BF16, or AVX512_BF16 on AMD.

    Intel's AVX512_BF16 without AMX has one unit for them where float32 has two: 81 against 145 GFLOP/s (docs/log.md).
    """
    lines = _lines("/proc/cpuinfo")
    flags = set(next((line.split() for line in lines if line.startswith(("flags", "Features"))), []))
    amd = any(line.startswith("vendor_id") and "AMD" in line for line in lines)
    return bool({"amx_bf16", "bf16"} & flags) or ("avx512_bf16" in flags and amd)


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed blocks instead of returning them to the system after every step.

    Large tensors are otherwise mapped and unmapped at each use, and the page faults cost as much as the arithmetic
    (docs/log.md). Returns whether it was done; elsewhere than glibc nothing happens.
    """
    if sys.platform != "linux":
        return False
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # Before 2.35 glibc allows no threshold above 32 MiB, and refuses a larger one.
    kept = any(mallopt(mmap_threshold, limit) for limit in (2**31 - 1, 32 * 2**20))
    return bool(kept and mallopt(trim_threshold, 2**31 - 1) and mallopt(top_pad, 64 * 2**20))


def remember_few_shapes() -> None:
    """Let oneDNN keep the code of `SHAPES` products and no more, unless the user has said how many; before the first product.

    It writes code for each shape of a product in bfloat16, and batches seldom have the same one twice: the thousand that it
    keeps by default took two gigabytes, for nothing (docs/log.md).
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(SHAPES))


def collect_garbage(device: torch.device) -> None:
    """Free what only cycles of references keep, and give back freed memory that was kept, on an accelerator or here."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # elsewhere than glibc
            ctypes.CDLL(None).malloc_trim(0)


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says: torch has a class for accelerators alone.

    oneDNN, whose products processors use, says that it "could not create a primitive" where it found no room for one.
    """
    told = str(error).lower()
    says = ("out of memory", "allocate memory", "could not create a primitive")
    return isinstance(error, MemoryError) or any(words in told for words in says)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had: of the accelerator, or of this machine or container, what this process holds included."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) + torch.cuda.memory_reserved(device)
    free = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")]
    held = [int(line.split()[1]) * 1024 for line in _lines("/proc/self/status") if line.startswith("VmRSS")]
    machine = sum(free + held) or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = next(iter(_lines("/sys/fs/cgroup/memory.max")), "max")
    return min(machine, int(limit)) if limit.isdecimal() else machine


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy() -> str | None:
    """Why wall times of this moment say little; None on an idle machine."""
    load = os.getloadavg()[0]
    if load <= LOAD * cores():
        return None
    return f"The machine is busy (load average {load:.1f} on {cores()} cores): compare processor seconds, not wall time."


def peak_memory() -> int:
    """The most bytes this process has held in memory at once."""
    if peak := peak_of("self"):
        return peak  # not from getrusage, whose peak begins with the parent's
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def peak_of(process: int | str) -> int:
    """The most bytes that a process has held so far; 0 where the system does not say, or when it is gone."""
    peak = [int(line.split()[1]) * 1024 for line in _lines(f"/proc/{process}/status") if line.startswith("VmHWM")]
    return peak[0] if peak else 0


def wait_with_peak(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a process, and say the most bytes it was seen to hold: its `ru_maxrss` would begin with its parent's peak."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, peak_of(process.pid))
        time.sleep(0.05)
    return peak


def _lines(path: str) -> list[str]:
    """The lines of a file of the system; none where there is no such file."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
