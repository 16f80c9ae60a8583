"""What really ran in a step: the types of its matrix products, the operations, the graphs that were compiled."""

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from turborec.bench.step import Contestant, Work

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_mm")


@dataclass(frozen=True)
class _Attention:
    """The operations of an attention kernel, from the shapes it is called with: its first `tensors` arguments."""

    formula: Callable[..., int]
    tensors: int

    def __call__(self, *shapes: Any, **_: Any) -> int:
        return self.formula(*shapes[: self.tensors])


FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _Attention(sdpa_flop_count, 3),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _Attention(sdpa_backward_flop_count, 4),
}
"""Operations that torch's own counter leaves out. A causal product is counted whole, though half of it is needed."""


@dataclass
class Evidence:
    """What was seen in one step."""

    work: Work
    flops: float = 0.0  # executed, matrix products and attention alone
    products: Counter[str] = field(default_factory=Counter)  # operations of matrix products by the type they ran in
    operations: Counter[str] = field(default_factory=Counter)  # calls by name
    graphs: int = 0  # compiled ones that ran

    @property
    def fill(self) -> float:
        """The share of positions that hold an event."""
        return self.work.events / max(1, self.work.positions)

    def main_type(self) -> str:
        """The type that most of the arithmetic of matrix products ran in."""
        return self.products.most_common(1)[0][0] if self.products else "none"


def observe(contestant: Contestant) -> Evidence:
    """Take one more step of the contestant and look at it."""
    seen, counter = _Watch(), FlopCounterMode(display=False, custom_mapping=FORMULAS)
    before = _graphs()
    with counter, seen:
        work = next(contestant.steps)
    return Evidence(work, float(counter.get_total_flops()), seen.products, seen.operations, _graphs() - before)


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


def _graphs() -> int:
    compiler: Any = sys.modules.get("torch._dynamo.utils")
    return int(compiler.counters["stats"]["unique_graphs"]) if compiler else 0
