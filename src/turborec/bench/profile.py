"""Where the time and the memory of a step go: its parts, its costliest operations, a trace to look at."""

import json
import tempfile
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from turborec.assembly import Assembly
from turborec.bench import step
from turborec.contract import Counted
from turborec.engine import hardware
from turborec.errors import UserError

PARTS = ("data", "forward", "head", "backward", "clip", "optimizer", "communication")
"""The scopes that the training loop and the losses name; `head` lies inside `forward` and is taken out of it."""

MOST_POINTS = 300
"""Of the memory over time: the most held in each of so many stretches."""

COLLECTIVES = ("c10d::", "gloo:", "nccl:")


@dataclass(frozen=True)
class Operation:
    """One kind of operation, over all steps that were looked at."""

    name: str
    milliseconds: float  # a step, without the operations it calls
    share: float
    calls: float  # a step


@dataclass(frozen=True)
class Memory:
    """What the steps held beyond what was there before them: weights and the optimizer's state are not counted."""

    milliseconds: tuple[float, ...]  # since the first step looked at
    mib: tuple[float, ...]
    highest: dict[str, float]  # MiB, the most held in each part of the step


@dataclass(frozen=True)
class Profile:
    """What a few steps spent their time on."""

    steps: int
    milliseconds: float  # a step; slower than without a profiler
    parts: dict[str, float]  # share of the step
    operations: tuple[Operation, ...]  # the costliest first
    memory: Memory


def take(assembly: Assembly, steps: int = 10, top: int = 25, trace: Path | None = None) -> Profile:
    """Look at some steps of a recipe; `trace` gets a file for chrome://tracing or Perfetto, memory included."""
    if isinstance(assembly.model, Counted):
        raise UserError(f"{assembly.recipe.model.kind} is counted, not trained: it has no step to look at.")
    hardware.keep_freed_memory()
    work = step.training(assembly)
    for _ in range(3):
        next(work)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (assembly.device.type == "cuda")
    with profile(activities=activities, profile_memory=True, acc_events=True) as seen:
        for _ in range(steps):
            next(work)
    with tempfile.TemporaryDirectory() as scratch:
        written = trace or Path(scratch) / "trace.json"
        seen.export_chrome_trace(str(written))
        memory = _memory(json.loads(written.read_text(encoding="utf-8"))["traceEvents"], assembly.device.type)
    events: list[Any] = list(seen.key_averages())
    done = [event for event in events if _by_the_device(event, assembly.device.type)]
    total = sum(_own(event) for event in done)
    parts = {event.key: _whole(event) / total for event in events if event.key in PARTS and _is_told(event)}
    if assembly.device.type != "cpu":  # gradients are computed by a thread of torch's own, which is in no scope
        parts["backward"] = 1 - sum(share for name, share in parts.items() if name not in ("backward", "head"))
    parts["forward"] = parts.get("forward", 0.0) - parts.get("head", 0.0)
    parts["communication"] = sum(_own(event) for event in done if event.key.startswith(COLLECTIVES)) / total
    ranked = sorted((event for event in done if event.key not in PARTS), key=_own, reverse=True)[:top]
    operations = tuple(Operation(e.key, _own(e) / steps / 1e3, _own(e) / total, e.count / steps) for e in ranked)
    return Profile(steps, total / steps / 1e3, {name: parts.get(name, 0.0) for name in PARTS}, operations, memory)


def _memory(events: list[dict[str, Any]], device: str) -> Memory:
    """The allocator's record in a trace: the most of each stretch of time, and of each scope, the innermost at its moment."""
    number = 0 if device == "cpu" else 1  # of torch's device types
    held = [
        (float(e["ts"]), e["args"]["Total Allocated"])
        for e in events
        if e.get("name") == "[memory]" and e["args"]["Device Type"] == number
    ]
    held.sort()
    if not held:
        return Memory((), (), {})
    first, last, least = held[0][0], held[-1][0], held[0][1]
    scopes = sorted((float(e["ts"]), float(e["ts"]) + float(e["dur"]), e["name"]) for e in events if _is_scope(e))
    starts, highest = [begin for begin, _, _ in scopes], dict.fromkeys(PARTS, 0.0)
    stretches: dict[int, float] = {}
    for when, size in held:
        mib = (size - least) / 2**20
        at = min(MOST_POINTS - 1, int(MOST_POINTS * (when - first) / max(1.0, last - first)))
        stretches[at] = max(stretches.get(at, mib), mib)
        inner = next((s for s in reversed(scopes[: bisect_right(starts, when)][-4:]) if s[1] >= when), None)
        if inner is not None:
            highest[inner[2]] = max(highest[inner[2]], mib)
    width = (last - first) / MOST_POINTS / 1e3
    return Memory(tuple(width * at for at in stretches), tuple(stretches.values()), {n: m for n, m in highest.items() if m})


def _is_scope(event: dict[str, Any]) -> bool:
    return event.get("name") in PARTS and event.get("cat") == "user_annotation" and "dur" in event


def _by_the_device(event: Any, device: str) -> bool:
    """Whether it is work of the device itself: of an accelerator its kernels, not the operations that asked for them."""
    if device == "cpu":
        return True
    return event.device_type.name != "CPU" and not event.is_user_annotation


def _is_told(event: Any) -> bool:
    """Whether it is a scope as the processor saw it; for an accelerator there is another, with all waiting in it."""
    return bool(event.device_type.name == "CPU")


def _own(event: Any) -> float:
    """Microseconds of an operation without those it calls, on the device that does the work."""
    return float(event.self_device_time_total or event.self_cpu_time_total)


def _whole(event: Any) -> float:
    return float(event.device_time_total or event.cpu_time_total)
