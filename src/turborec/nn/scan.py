"""Linear recurrences over time, h_t = a_t * h_{t-1} + b_t for each element alone, with backward passes of their own.

Letters: L steps, B rows, E channels, N states of a channel, ... any further shape.
"""

from typing import Any

import torch
from torch import Tensor

from turborec.nn.lowering import Lowering, best


def scan(
    decay: Tensor,
    drive: Tensor,
    start: Tensor | None = None,
    resets: Tensor | None = None,
    lowering: Lowering | None = None,
) -> Tensor:
    """All states of h_t = decay_t * h_{t-1} + drive_t: [L, B, ...] twice, real or complex -> [L, B, ...].

    `start` [B, ...] is h before the first step, zero by default. `resets` bool [L, B]: steps that begin anew from zero.
    `lowering` computes it; where it is None, the best there is for these tensors. A ValueError without any step.
    """
    _require_steps(drive)
    if resets is not None:
        decay = decay.masked_fill(resets.view(*resets.shape, *[1] * (decay.ndim - 2)), 0)
    if start is not None:
        drive = torch.cat([drive[:1] + decay[:1] * start, drive[1:]])
    states: Tensor = _Scan.apply(decay, drive, lowering or best(drive))  # type: ignore[no-untyped-call]
    return states


class _Scan(torch.autograd.Function):
    """The recurrence from a state of zero."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, drive: Tensor, lowering: Lowering) -> Tensor:
        states = lowering.walk(decay, drive, False)
        ctx.save_for_backward(decay, states)
        ctx.lowering = lowering
        return states

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """With g_t the whole gradient of h_t: g_t = G_t + conj(a_{t+1}) g_{t+1}; of b_t it is g_t, of a_t g_t conj(h_{t-1})."""
        decay, states = ctx.saved_tensors
        whole = ctx.lowering.walk(decay, gradient, True)
        of_decay = torch.zeros_like(whole)
        torch.mul(whole[1:], states[:-1].conj() if states.is_complex() else states[:-1], out=of_decay[1:])
        return of_decay, whole, None


def selective_scan(
    x: Tensor,
    step: Tensor,
    rate: Tensor,
    write: Tensor,
    read: Tensor,
    start: Tensor | None = None,
    resets: Tensor | None = None,
    lowering: Lowering | None = None,
) -> tuple[Tensor, Tensor]:
    """Mamba's recurrence, h = exp(step * rate) h + step * x * write, y = read . h, in float32 (arXiv 2312.00752, section 3.2).

    x, step [L, B, E]; rate [N, E], below zero; write, read [L, B, N] -> y [L, B, E] and the last h [B, N, E], through which
    no gradient flows. `start` [B, N, E] is h before the first step; `resets` bool [L, B]: steps that begin anew from zero.
    `lowering` computes it; where it is None, the best there is for these tensors. A ValueError without any step.
    """
    _require_steps(x)
    x, step, rate, write, read = (t.float() if t.dtype != torch.float64 else t for t in (x, step, rate, write, read))
    chosen = lowering or best(x)
    if chosen.histories is not None and start is None and resets is None:
        y, last = chosen.histories(x, step, rate, write, read)
        return y, last.detach()
    y, last = _Selective.apply(chosen, resets, x, step, rate, write, read, start)  # type: ignore[no-untyped-call]
    return y, last


class _Selective(torch.autograd.Function):
    """The same, states held as [B, N, E], so that the longest loops of every operation run over channels."""

    @staticmethod
    def forward(ctx: Any, lowering: Lowering, resets: Tensor | None, *inputs: Any) -> tuple[Tensor, Tensor]:
        """The inputs are x, step, rate, write, read and the start."""
        y, states = lowering.forward(*inputs, resets)
        ctx.save_for_backward(*inputs, states, resets)
        ctx.lowering = lowering
        last = states[-1].clone()  # a part of the states would keep all of them in memory
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, start, states, resets = ctx.saved_tensors
        *gradients, of_start = ctx.lowering.backward(gradient, tuple(inputs), states, start, resets)
        return None, None, *gradients, None if start is None else of_start


def _require_steps(inputs: Tensor) -> None:
    if not inputs.shape[0]:  # `len` would tie compiled code to one length
        raise ValueError(f"expected at least one step of time, got inputs of shape {tuple(inputs.shape)}")
