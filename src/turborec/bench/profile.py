"""Where the time of a step goes: its parts, its costliest operations, a trace to look at."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from turborec.assembly import Assembly
from turborec.bench import step
from turborec.engine import hardware

PARTS = ("data", "forward", "head", "backward", "clip", "optimizer", "communication")
"""The scopes that the training loop and the losses name; `head` lies inside `forward` and is taken out of it."""

COLLECTIVES = ("c10d::", "gloo:", "nccl:")


@dataclass(frozen=True)
class Operation:
    """One kind of operation, over all steps that were looked at."""

    name: str
    milliseconds: float  # a step, without the operations it calls
    share: float
    calls: float  # a step


@dataclass(frozen=True)
class Profile:
    """What a few steps spent their time on."""

    steps: int
    milliseconds: float  # a step; slower than without a profiler
    parts: dict[str, float]  # share of the step
    operations: tuple[Operation, ...]  # the costliest first


def take(assembly: Assembly, steps: int = 10, top: int = 25, trace: Path | None = None) -> Profile:
    """Look at some steps of a recipe; `trace` gets a file for chrome://tracing or Perfetto, memory included."""
    hardware.keep_freed_memory()
    work = step.training(assembly)
    for _ in range(3):
        next(work)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (assembly.device.type == "cuda")
    with profile(activities=activities, profile_memory=trace is not None) as seen:
        for _ in range(steps):
            next(work)
    if trace is not None:
        seen.export_chrome_trace(str(trace))
    events: list[Any] = list(seen.key_averages())
    total = sum(_own(event) for event in events)
    parts = {event.key: _whole(event) / total for event in events if event.key in PARTS}
    parts["forward"] = parts.get("forward", 0.0) - parts.get("head", 0.0)
    parts["communication"] = sum(_own(event) for event in events if event.key.startswith(COLLECTIVES)) / total
    ranked = sorted((event for event in events if event.key not in PARTS), key=_own, reverse=True)[:top]
    operations = tuple(Operation(e.key, _own(e) / steps / 1e3, _own(e) / total, e.count / steps) for e in ranked)
    return Profile(steps, total / steps / 1e3, {name: parts.get(name, 0.0) for name in PARTS}, operations)


def _own(event: Any) -> float:
    """Microseconds of an operation without those it calls, on the device that does the work."""
    return float(event.self_device_time_total or event.self_cpu_time_total)


def _whole(event: Any) -> float:
    return float(event.device_time_total or event.cpu_time_total)
