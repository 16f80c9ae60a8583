"""Linear recurrences over time, h_t = a_t * h_{t-1} + b_t for each element alone, with backward passes of their own.

Time comes first in memory. A loop over it that writes into place is near what memory allows on a processor: parallel scans
only add traffic, and a loop that indexes [:, t] makes autograd write a zero tensor of full size at every step. Nothing of the
size of all steps times all states is made but the states themselves, which the backward pass reads.

Letters: L steps, B rows, E channels, N states of a channel, ... any further shape.
"""

import logging
from functools import cache
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def scan(decay: Tensor, drive: Tensor, start: Tensor | None = None, resets: Tensor | None = None) -> Tensor:
    """All states of h_t = decay_t * h_{t-1} + drive_t: [L, B, ...] twice, real or complex -> [L, B, ...].

    `start` [B, ...] is h before the first step, zero by default. `resets` bool [L, B]: steps that begin anew from zero.
    """
    if resets is not None:
        decay = decay.masked_fill(resets.view(*resets.shape, *[1] * (decay.ndim - 2)), 0)
    if start is not None:
        drive = torch.cat([drive[:1] + decay[:1] * start, drive[1:]])
    states: Tensor = _Scan.apply(decay, drive)  # type: ignore[no-untyped-call]
    return states


class _Scan(torch.autograd.Function):
    """The recurrence from a state of zero."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, drive: Tensor) -> Tensor:
        states = _walked(decay, drive)
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """With g_t the whole gradient of h_t: g_t = G_t + conj(a_{t+1}) g_{t+1}; of b_t it is g_t, of a_t g_t conj(h_{t-1})."""
        decay, states = ctx.saved_tensors
        whole = _walked(decay, gradient, back=True)
        of_decay = torch.zeros_like(whole)
        torch.mul(whole[1:], states[:-1].conj() if states.is_complex() else states[:-1], out=of_decay[1:])
        return of_decay, whole


def _walked(decay: Tensor, drive: Tensor, back: bool = False) -> Tensor:
    """The states of the recurrence from zero; going `back`, from the gradients of states those through later states, too."""
    if kernels := _kernels(drive):
        walked: Tensor = kernels.walk(decay, drive, back)
        return walked
    states = torch.empty_like(drive, memory_format=torch.contiguous_format)
    factors, drives, out = decay.conj().resolve_conj().unbind(0) if back else decay.unbind(0), drive.unbind(0), states.unbind(0)
    if back:
        factors, drives, out = (factors[0], *factors[:0:-1]), drives[::-1], out[::-1]
    out[0].copy_(drives[0])
    for t in range(1, len(out)):
        torch.addcmul(drives[t], factors[t], out[t - 1], out=out[t])
    return states


def _kernels(tensor: Tensor) -> Any:
    """The kernels for this tensor's device; None where the loops in this file are to be run."""
    if not tensor.is_cuda or tensor.dtype not in (torch.float32, torch.complex64):
        return None
    return _triton()


@cache
def _triton() -> Any:
    try:
        from turborec.nn import scan_triton
    except ImportError as error:
        log.warning("Recurrences run step by step, which is slow on an accelerator: Triton cannot be loaded (%s).", error)
        return None
    return scan_triton


def selective_scan(
    x: Tensor,
    step: Tensor,
    rate: Tensor,
    write: Tensor,
    read: Tensor,
    start: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mamba's recurrence, h = exp(step * rate) h + step * x * write, y = read . h, in float32 (arXiv 2312.00752, section 3.2).

    x, step [L, B, E]; rate [N, E], below zero; write, read [L, B, N] -> y [L, B, E] and the last h [B, N, E], which has no
    gradient. `start` [B, N, E] is h before the first step; `resets` bool [L, B]: steps that begin anew from zero.
    """
    x, step, rate, write, read = (t.float() if t.dtype != torch.float64 else t for t in (x, step, rate, write, read))
    kernels = _kernels(x)
    method = kernels.SelectiveScan if kernels else _Selective
    y, last = method.apply(x, step, rate, write, read, start, resets)
    return y, last


class _Selective(torch.autograd.Function):
    """The same, states held as [B, N, E], so that the longest loops of every operation run over channels."""

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
        length, rows, channels = x.shape
        states = x.new_empty(length, rows, len(rate), channels)
        y, decay = x.new_empty(length, rows, 1, channels), x.new_empty(states.shape[1:])
        before = torch.zeros_like(decay) if start is None else start
        kept = None if resets is None else (~resets).to(x.dtype)[:, :, None, None]
        steps, writes, reads = step[:, :, None].unbind(0), write[..., None].unbind(0), read[:, :, None].unbind(0)
        for t, (driven, h) in enumerate(zip((step * x)[:, :, None].unbind(0), states.unbind(0), strict=True)):
            torch.mul(steps[t], rate, out=decay).exp_()
            if kept is not None:
                decay.mul_(kept[t])
            torch.mul(decay, before, out=h)
            h.baddbmm_(writes[t], driven)
            torch.bmm(reads[t], h, out=y[t])
            before = h
        ctx.save_for_backward(x, step, rate, write, read, states, start, resets)
        ctx.mark_non_differentiable(before)
        return y.squeeze(2), before

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """The decays are computed once more: reading them again from memory would take as long."""
        x, step, rate, write, read, states, start, resets = ctx.saved_tensors
        gradient = gradient.contiguous()
        whole, decay, through = (x.new_zeros(states.shape[1:]) for _ in range(3))  # `whole`: the gradient of h
        kept = None if resets is None else (~resets).to(x.dtype)[:, :, None, None]
        of_driven, of_write, of_read = x.new_empty(x.shape), torch.empty_like(write), torch.empty_like(read)
        of_step, of_rate = torch.zeros_like(step), torch.zeros_like(rate)
        driven = step * x
        for t in range(len(x) - 1, -1, -1):
            h = states[t]
            whole.baddbmm_(read[t][..., None], gradient[t][:, None])
            torch.bmm(h, gradient[t][..., None], out=of_read[t][..., None])
            torch.bmm(whole, driven[t][..., None], out=of_write[t][..., None])
            torch.bmm(write[t][:, None], whole, out=of_driven[t][:, None])
            before = states[t - 1] if t else start
            if before is None:
                break
            torch.mul(step[t][:, None], rate, out=decay).exp_()
            if kept is not None:
                decay.mul_(kept[t])
            whole.mul_(decay)
            torch.mul(whole, before, out=through)
            torch.sum(torch.mul(through, rate, out=decay), 1, out=of_step[t])
            of_rate.add_(through.mul_(step[t][:, None]).sum(0))
        return of_driven * step, of_step + of_driven * x, of_rate, of_write, of_read, None, None
