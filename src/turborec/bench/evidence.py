"""What really ran in a step: the types of its matrix products, the operations, the graphs that were compiled."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, addmm_flop, mm_flop, sdpa_backward_flop_count, sdpa_flop_count

from turborec.bench import step
from turborec.bench.step import Contestant, Work

REGION = "Torch-Compiled Region"
"""What the profiler calls a call of compiled code."""

REPLAY = "cudaGraphLaunch"
"""What it calls the replay of recorded kernels."""

STEPS, SECONDS = 24, 5.0
"""How many steps are looked at, and for how long at most."""

PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "_scaled_mm")


@dataclass(frozen=True)
class _Kernel:
    """The operations of a kernel, from the shapes it is called with: its first `tensors` arguments."""

    formula: Callable[..., int]
    tensors: int

    def __call__(self, *shapes: Any, **_: Any) -> int:
        return self.formula(*shapes[: self.tensors])


FORMULAS = {
    torch.ops.aten.addmm_: _Kernel(addmm_flop, 3),
    # Told a type of their own, torch's formulas take it for the shape of what comes out.
    torch.ops.aten.addmm: _Kernel(addmm_flop, 3),
    torch.ops.aten.mm: _Kernel(mm_flop, 2),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _Kernel(sdpa_flop_count, 3),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _Kernel(sdpa_backward_flop_count, 4),
}
"""What torch's own counter leaves out or cannot count. A causal product counts whole, though half of it is needed."""


@dataclass
class Evidence:
    """What was seen in some steps."""

    work: Work
    flops: float = 0.0  # executed, matrix products and attention alone
    products: Counter[str] = field(default_factory=Counter)  # operations of matrix products by the type they ran in
    operations: Counter[str] = field(default_factory=Counter)  # calls by name, of all the steps
    cold_start: float = 0.0  # seconds of the first step: compilation, first touches
    graphs: int = 0  # compiled in the first step, unless another contestant has compiled the same code
    breaks: int = 0  # where a graph had to end
    regions: int = 0  # calls of compiled code in a step after the first
    replays: int = 0  # of recorded CUDA graphs, likewise

    @property
    def fill(self) -> float:
        """The share of positions that hold an event."""
        return self.work.events / max(1, self.work.positions)

    def calls(self, name: str) -> float:
        """Calls of an operation a step."""
        return self.operations[name] / max(1, self.work.steps)

    def main_type(self) -> str:
        """The type that most of the arithmetic of matrix products ran in."""
        return self.products.most_common(1)[0][0] if self.products else "none"


def observe(contestant: Contestant) -> Evidence:
    """Take steps of the contestant and look at them: the first, which compiles, and for all else those after it.

    Under a mode that watches the dispatcher torch runs the plain code in place of the compiled, so a contestant that compiles
    is watched by the profiler, which sees the calls of compiled code and not the operations within.
    """
    graphs, breaks = step.compiled()
    began = time.perf_counter()
    next(contestant.steps)
    cold_start, after = time.perf_counter() - began, step.compiled()
    if contestant.compiled or contestant.recorded:
        regions = replays = 0
        for _ in range(STEPS if contestant.recorded else 1):  # a shape is recorded when it is seen again
            with profile(acc_events=True) as profiled:
                work = next(contestant.steps)
            seen_now = [(event.key, event.count) for event in profiled.key_averages()]
            regions = max(regions, sum(count for key, count in seen_now if key.startswith(REGION)))
            replays = sum(count for key, count in seen_now if key.startswith(REPLAY))
            if replays:
                break
        made: dict[str, Any] = {
            "graphs": after[0] - graphs,
            "breaks": after[1] - breaks,
            "regions": regions,
            "replays": replays,
        }
        return Evidence(work, cold_start=cold_start, **made)
    seen, counter = _Watch(), FlopCounterMode(display=False, custom_mapping=FORMULAS)
    began = time.perf_counter()
    with counter, seen:
        work = next(contestant.steps)
        # Batches differ in width and in targets, so one of them says little of the arithmetic of a target.
        while work.steps < STEPS and time.perf_counter() - began < SECONDS:
            work = work + next(contestant.steps)
    evidence = Evidence(work, float(counter.get_total_flops()), seen.products, seen.operations)
    evidence.cold_start = cold_start
    return evidence


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts every operation that reaches the dispatcher, in the backward pass and the optimizer too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        self.operations[name] += 1
        if name in PRODUCTS:
            left, right = [arg for arg in args if isinstance(arg, torch.Tensor)][-2:]
            self.products[str(left.dtype).removeprefix("torch.")] += 2 * left.numel() * right.shape[-1]
        return func(*args, **(kwargs or {}))
