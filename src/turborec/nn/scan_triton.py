"""Mamba's recurrence as two kernels of Triton, for accelerators: a program for each row and block of channels walks the steps.

The state stays in registers; what goes through memory are the inputs, the outputs and, for the backward pass, the states.
Letters as in `scan`: L steps, B rows, E channels, N states of a channel.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from turborec.nn.scan_loops import Gradients, ran, shape_of_walk, shapes_of_backward, shapes_of_forward

CHANNELS = 32
"""Channels of a program."""


@triton.jit
def _forward(x, step, rate, write, read, start, resets, y, states, length, rows, E, N, W: tl.constexpr, M: tl.constexpr,
             STARTED: tl.constexpr, RESET: tl.constexpr):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # places among all states may be more than 32 bits hold
    e = tl.program_id(1) * W + tl.arange(0, W)
    n = tl.arange(0, M)
    here, there = e < E, n < N
    both = there[:, None] & here[None, :]
    at = n[:, None] * E + e[None, :]
    rates = tl.load(rate + at, mask=both, other=0.0)
    h = tl.zeros((M, W), tl.float32)
    if STARTED:
        h = tl.load(start + row * N * E + at, mask=both, other=0.0)
    for t in range(length):
        place = t * rows + row
        d = tl.load(step + place * E + e, mask=here, other=0.0)
        u = tl.load(x + place * E + e, mask=here, other=0.0)
        w = tl.load(write + place * N + n, mask=there, other=0.0)
        r = tl.load(read + place * N + n, mask=there, other=0.0)
        decay = tl.exp(d[None, :] * rates)
        if RESET:
            decay = tl.where(tl.load(resets + place) != 0, 0.0, decay)
        h = decay * h + w[:, None] * (d * u)[None, :]
        tl.store(states + place * N * E + at, h, mask=both)
        tl.store(y + place * E + e, tl.sum(r[:, None] * h, axis=0), mask=here)


@triton.jit
def _backward(x, step, rate, write, read, start, resets, states, gradient, of_x, of_step, of_rate, of_write, of_read, of_start,
              length, rows, E, N, W: tl.constexpr, M: tl.constexpr, STARTED: tl.constexpr, RESET: tl.constexpr):  # fmt: skip
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    e, n = block * W + tl.arange(0, W), tl.arange(0, M)
    here, there = e < E, n < N
    both = there[:, None] & here[None, :]
    at = n[:, None] * E + e[None, :]
    rates = tl.load(rate + at, mask=both, other=0.0)
    whole, total = tl.zeros((M, W), tl.float32), tl.zeros((M, W), tl.float32)
    for back in range(length):
        t = length - 1 - back
        place = t * rows + row
        d = tl.load(step + place * E + e, mask=here, other=0.0)
        u = tl.load(x + place * E + e, mask=here, other=0.0)
        g = tl.load(gradient + place * E + e, mask=here, other=0.0)
        w = tl.load(write + place * N + n, mask=there, other=0.0)
        r = tl.load(read + place * N + n, mask=there, other=0.0)
        h = tl.load(states + place * N * E + at, mask=both, other=0.0)
        before = tl.zeros((M, W), tl.float32)
        if t > 0:
            before = tl.load(states + (place - rows) * N * E + at, mask=both, other=0.0)
        elif STARTED:
            before = tl.load(start + row * N * E + at, mask=both, other=0.0)
        whole += r[:, None] * g[None, :]
        # Each block of channels has a sum of its own, added up afterwards in a fixed order.
        part = (block * length + t) * rows + row
        tl.store(of_read + part * N + n, tl.sum(h * g[None, :], axis=1), mask=there)
        tl.store(of_write + part * N + n, tl.sum(whole * (d * u)[None, :], axis=1), mask=there)
        driven = tl.sum(whole * w[:, None], axis=0)
        decay = tl.exp(d[None, :] * rates)
        if RESET:
            decay = tl.where(tl.load(resets + place) != 0, 0.0, decay)
        whole = whole * decay
        through = whole * before
        tl.store(of_x + place * E + e, driven * d, mask=here)
        tl.store(of_step + place * E + e, driven * u + tl.sum(through * rates, axis=0), mask=here)
        total += through * d[None, :]
    tl.store(of_rate + row * N * E + at, total, mask=both)
    tl.store(of_start + row * N * E + at, whole, mask=both)


def forward(
    x: Tensor, step: Tensor, rate: Tensor, write: Tensor, read: Tensor, start: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `scan_loops.forward`, in float32."""
    y, states = _forward_operator(x, step, rate, write, read, start, resets)
    return y, states


@torch.library.custom_op("turborec::selective_triton", mutates_args=())
def _forward_operator(
    x: Tensor, step: Tensor, rate: Tensor, write: Tensor, read: Tensor, start: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    _require(x, torch.float32)
    x, step, rate, write, read = (t.contiguous() for t in (x, step, rate, write, read))
    y, states = torch.empty_like(x), x.new_empty(*x.shape[:2], *rate.shape)
    if x.shape[1]:
        with torch.cuda.device_of(x):
            _forward[(x.shape[1], _blocks(x))](
                x, step, rate, write, read, *_filled(x, start, resets), y, states, *_sizes(x, rate, start, resets)
            )
    return y, states


_forward_operator.register_fake(shapes_of_forward)


def backward(
    gradient: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    states: Tensor,
    start: Tensor | None,
    resets: Tensor | None,
) -> Gradients:
    """As `scan_loops.backward`, in float32. Sums over channels and over rows are made of parts, in a fixed order."""
    of_x, of_step, of_rate, of_write, of_read, of_start = _backward_operator(gradient, list(inputs), states, start, resets)
    return of_x, of_step, of_rate, of_write, of_read, of_start


@torch.library.custom_op("turborec::selective_triton_backward", mutates_args=())
def _backward_operator(
    gradient: Tensor, inputs: list[Tensor], states: Tensor, start: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    _require(gradient, torch.float32)
    x, step, rate, write, read = (t.contiguous() for t in inputs)
    of_x, of_step, of_rate = torch.empty_like(x), torch.empty_like(x), x.new_empty(x.shape[1], *rate.shape)
    of_write, of_read = (x.new_empty(_blocks(x), *write.shape) for _ in range(2))
    of_start, filled = x.new_empty(states.shape[1:]), _filled(x, start, resets)
    made, sizes = (of_x, of_step, of_rate, of_write, of_read, of_start), _sizes(x, rate, start, resets)
    if x.shape[1]:
        with torch.cuda.device_of(x):
            _backward[(x.shape[1], _blocks(x))](
                x, step, rate, write, read, *filled, states, gradient.contiguous(), *made, *sizes
            )
    return of_x, of_step, of_rate.sum(0), of_write.sum(0), of_read.sum(0), of_start


_backward_operator.register_fake(shapes_of_backward)


def _require(tensor: Tensor, dtype: torch.dtype) -> None:
    """Every operator begins with this: a kernel reads whatever lies in memory as its own type."""
    if tensor.dtype != dtype:
        raise ValueError(f"the kernels of Triton compute in {dtype}, got {tensor.dtype}: use the loops")
    ran["triton"] += 1


def _blocks(x: Tensor) -> int:
    blocks: int = triton.cdiv(x.shape[2], CHANNELS)
    return blocks


def _filled(x: Tensor, start: Tensor | None, resets: Tensor | None) -> tuple[Tensor, Tensor]:
    """What kernels are given for the start and the resets; something that they do not read for what is not there."""
    return (
        x if start is None else start.contiguous(),
        x if resets is None else resets.to(torch.uint8).contiguous(),
    )


def _sizes(x: Tensor, rate: Tensor, start: Tensor | None, resets: Tensor | None) -> tuple[Any, ...]:
    length, rows, channels = x.shape
    states = len(rate)
    return length, rows, channels, states, CHANNELS, triton.next_power_of_2(states), start is not None, resets is not None


@triton.jit
def _walk(decay, drive, out, length, size, W: tl.constexpr, COMPLEX: tl.constexpr, BACK: tl.constexpr):  # fmt: skip
    """h_t = a_t h_{t-1} + b_t; backward g_t = G_t + conj(a_{t+1}) g_{t+1}. Complex numbers lie as pairs of real ones."""
    place = tl.program_id(0).to(tl.int64) * W + tl.arange(0, W)
    here = place < size
    re, im = tl.zeros((W,), tl.float32), tl.zeros((W,), tl.float32)
    for number in range(length):
        t = length - 1 - number if BACK else number
        of_decay = t + (number > 0) if BACK else t  # to the last step nothing comes back, whatever it is multiplied with
        if COMPLEX:
            a_re = tl.load(decay + 2 * (of_decay * size + place), mask=here, other=0.0)
            a_im = tl.load(decay + 2 * (of_decay * size + place) + 1, mask=here, other=0.0)
            a_im = -a_im if BACK else a_im
            next_re = a_re * re - a_im * im + tl.load(drive + 2 * (t * size + place), mask=here, other=0.0)
            im = a_re * im + a_im * re + tl.load(drive + 2 * (t * size + place) + 1, mask=here, other=0.0)
            re = next_re
            tl.store(out + 2 * (t * size + place), re, mask=here)
            tl.store(out + 2 * (t * size + place) + 1, im, mask=here)
        else:
            a = tl.load(decay + of_decay * size + place, mask=here, other=0.0)
            re = a * re + tl.load(drive + t * size + place, mask=here, other=0.0)
            tl.store(out + t * size + place, re, mask=here)


def walk(decay: Tensor, drive: Tensor, back: bool) -> Tensor:
    """As `scan_loops.walk`, in float32 or complex64."""
    states: Tensor = _walk_operator(decay, drive, back)
    return states


@torch.library.custom_op("turborec::walk_triton", mutates_args=())
def _walk_operator(decay: Tensor, drive: Tensor, back: bool) -> Tensor:
    _require(drive, torch.complex64 if drive.is_complex() else torch.float32)
    decay, drive = decay.resolve_conj().contiguous(), drive.resolve_conj().contiguous()
    out, size = torch.empty_like(drive), drive[0].numel()
    parts = [torch.view_as_real(t) if t.is_complex() else t for t in (decay, drive, out)]
    if size:
        with torch.cuda.device_of(drive):
            _walk[(triton.cdiv(size, 4 * CHANNELS),)](*parts, len(drive), size, 4 * CHANNELS, drive.is_complex(), back)
    return out


_walk_operator.register_fake(shape_of_walk)
