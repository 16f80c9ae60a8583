"""Mamba's recurrence as two kernels of Triton, for accelerators: a program for each row and block of channels walks the steps.

The state stays in registers; what goes through memory are the inputs, the outputs and, for the backward pass, the states.
Letters as in `scan`: L steps, B rows, E channels, N states of a channel.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 32
"""Channels of a program."""


@triton.jit
def _forward(x, step, rate, write, read, start, resets, y, states, length, rows, E, N, W: tl.constexpr, M: tl.constexpr,
             STARTED: tl.constexpr, RESET: tl.constexpr):  # fmt: skip
    row, e = tl.program_id(0), tl.program_id(1) * W + tl.arange(0, W)
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
def _backward(x, step, rate, write, read, start, resets, states, gradient, of_x, of_step, of_rate, of_write, of_read,
              length, rows, E, N, W: tl.constexpr, M: tl.constexpr, STARTED: tl.constexpr, RESET: tl.constexpr):  # fmt: skip
    row, block = tl.program_id(0), tl.program_id(1)
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


class SelectiveScan(torch.autograd.Function):
    """`scan.selective_scan` in float32, on an accelerator."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        rate: Tensor,
        write: Tensor,
        read: Tensor,
        start: Tensor | None,
        resets: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """As `scan.selective_scan`."""
        x, step, rate, write, read = (t.contiguous() for t in (x, step, rate, write, read))
        resets = None if resets is None else resets.to(torch.uint8).contiguous()
        start = None if start is None else start.contiguous()
        length, rows, channels = x.shape
        y, states = torch.empty_like(x), x.new_empty(length, rows, len(rate), channels)
        ctx.shape = (
            length,
            rows,
            channels,
            len(rate),
            CHANNELS,
            triton.next_power_of_2(len(rate)),
            start is not None,
            resets is not None,
        )
        grid = (rows, triton.cdiv(channels, CHANNELS))
        _forward[grid](
            x, step, rate, write, read, x if start is None else start, x if resets is None else resets, y, states, *ctx.shape
        )
        ctx.save_for_backward(x, step, rate, write, read, start, resets, states)
        last = states[-1].clone()
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Sums over channels and over rows are made of parts, in a fixed order."""
        x, step, rate, write, read, start, resets, states = ctx.saved_tensors
        blocks = triton.cdiv(x.shape[2], CHANNELS)
        of_x, of_step, of_rate = torch.empty_like(x), torch.empty_like(x), x.new_empty(x.shape[1], *rate.shape)
        of_write, of_read = (x.new_empty(blocks, *write.shape) for _ in range(2))
        filled = [x if t is None else t for t in (start, resets)]
        _backward[(x.shape[1], blocks)](
            x,
            step,
            rate,
            write,
            read,
            *filled,
            states,
            gradient.contiguous(),
            of_x,
            of_step,
            of_rate,
            of_write,
            of_read,
            *ctx.shape,
        )
        return of_x, of_step, of_rate.sum(0), of_write.sum(0), of_read.sum(0), None, None


@triton.jit
def _walk(decay, drive, out, length, size, W: tl.constexpr, COMPLEX: tl.constexpr, BACK: tl.constexpr):  # fmt: skip
    """h_t = a_t h_{t-1} + b_t; backward g_t = G_t + conj(a_{t+1}) g_{t+1}. Complex numbers lie as pairs of real ones."""
    place = tl.program_id(0) * W + tl.arange(0, W)
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


def walk(decay: Tensor, drive: Tensor, back: bool = False) -> Tensor:
    """The states of a recurrence in float32 or complex64, or, going `back`, the gradients of its states: [L, ...]."""
    decay, drive = decay.resolve_conj().contiguous(), drive.resolve_conj().contiguous()
    out, size = torch.empty_like(drive), drive[0].numel()
    parts = [torch.view_as_real(t) if t.is_complex() else t for t in (decay, drive, out)]
    _walk[(triton.cdiv(size, 4 * CHANNELS),)](*parts, len(drive), size, 4 * CHANNELS, drive.is_complex(), back)
    return out
