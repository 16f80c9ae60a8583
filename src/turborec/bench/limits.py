"""What the machine can do at best, measured where and when the steps are: matrix products and memory traffic."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

Shape = tuple[int, int, int]
"""Rows, inner dimension and columns of a matrix product."""

SIZE = 2048
"""Of the square product that is always tried."""


@dataclass(frozen=True)
class Limits:
    """Ceilings of one device and one type."""

    dtype: str
    flops: float  # floating-point operations a second of the best matrix product
    bandwidth: float  # bytes a second of a copy, read and written


def measure(device: torch.device, dtype: torch.dtype, shapes: tuple[Shape, ...] = ()) -> Limits:
    """The best of 2048-cubed and of the model's own product shapes, and of a copy of 128 MiB."""
    best = 0.0
    for rows, inner, columns in ((SIZE, SIZE, SIZE), *shapes):
        left, right = (torch.randn(a, b, device=device).to(dtype) for a, b in ((rows, inner), (inner, columns)))
        product = partial(torch.mm, left, right, out=torch.empty(rows, columns, device=device, dtype=dtype))
        best = max(best, 2 * rows * inner * columns / _fastest(product, device))
    source = torch.ones(32 * 2**20, device=device)
    copied = 2 * source.nbytes / _fastest(partial(torch.empty_like(source).copy_, source), device)
    return Limits(str(dtype).removeprefix("torch."), best, copied)


def _fastest(call: Callable[[], object], device: torch.device, seconds: float = 0.3) -> float:
    """The shortest time of one call among as many as fit into `seconds`, at least three."""
    best, ended, calls = float("inf"), time.perf_counter() + seconds, 0
    while calls < 3 or time.perf_counter() < ended:
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best, calls = min(best, time.perf_counter() - began), calls + 1
    return best
