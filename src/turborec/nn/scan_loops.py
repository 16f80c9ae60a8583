"""Recurrences step by step: what every processor can do, and what kernels for accelerators are held against.

Time comes first in memory. A loop over it that writes into place is near what memory allows on a processor: parallel scans
only add traffic, and a loop that indexes [:, t] makes autograd write a zero tensor of full size at every step. Nothing of the
size of all steps times all states is made but the states themselves, which the backward pass reads.

They are operators of torch, so that compilers and exports take each for one step instead of writing out its loop, and so that
a profile shows them by name. Letters: L steps, B rows, E channels, N states of a channel, ... any further shape.
"""

from collections import Counter

import torch
from torch import Tensor

ran: Counter[str] = Counter()
"""How often each way of computing recurrences has run in this process, backward passes included: the proof that it did."""

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Of x, step, rate, write, read and the start."""


def walk(decay: Tensor, drive: Tensor, back: bool) -> Tensor:
    """h_t = decay_t * h_{t-1} + drive_t from zero: [L, B, ...] twice, real or complex -> [L, B, ...].

    Going `back`, `drive` are the gradients of states, and what comes are those through all later states, too:
    g_t = drive_t + conj(decay_{t+1}) g_{t+1}.
    """
    states: Tensor = _walk(decay, drive, back)
    return states


@torch.library.custom_op("turborec::walk_loops", mutates_args=())
def _walk(decay: Tensor, drive: Tensor, back: bool) -> Tensor:
    ran["reference"] += 1
    states = torch.empty_like(drive, memory_format=torch.contiguous_format)
    factors = decay.conj().resolve_conj().unbind(0) if back else decay.unbind(0)
    drives, out = drive.unbind(0), states.unbind(0)
    if back:
        factors, drives, out = (factors[0], *factors[:0:-1]), drives[::-1], out[::-1]
    out[0].copy_(drives[0])
    for t in range(1, len(out)):
        torch.addcmul(drives[t], factors[t], out[t - 1], out=out[t])
    return states


@_walk.register_fake
def shape_of_walk(decay: Tensor, drive: Tensor, back: bool) -> Tensor:
    """What compilers are told that any operator for `walk` gives: its shape without its numbers."""
    return torch.empty_like(drive, memory_format=torch.contiguous_format)


def forward(
    x: Tensor, step: Tensor, rate: Tensor, write: Tensor, read: Tensor, start: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Mamba's recurrence as `scan.selective_scan` has it: y [L, B, E], and all states [L, B, N, E]."""
    y, states = _forward(x, step, rate, write, read, start, resets)
    return y, states


@torch.library.custom_op("turborec::selective_loops", mutates_args=())
def _forward(
    x: Tensor, step: Tensor, rate: Tensor, write: Tensor, read: Tensor, start: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    ran["reference"] += 1
    length, rows, channels = x.shape
    states = x.new_empty(length, rows, len(rate), channels)
    y, decay = x.new_empty(length, rows, 1, channels), x.new_empty(states.shape[1:])
    before = torch.zeros_like(decay) if start is None else start
    kept = _kept(resets, x)
    steps, writes, reads = step[:, :, None].unbind(0), write[..., None].unbind(0), read[:, :, None].unbind(0)
    with torch.autocast(x.device.type, enabled=False):
        for t, (driven, h) in enumerate(zip((step * x)[:, :, None].unbind(0), states.unbind(0), strict=True)):
            torch.mul(steps[t], rate, out=decay).exp_()
            if kept is not None:
                decay.mul_(kept[t])
            torch.mul(decay, before, out=h)
            h.baddbmm_(writes[t], driven)
            torch.bmm(reads[t], h, out=y[t])
            before = h
    return y.squeeze(2), states


@_forward.register_fake
def shapes_of_forward(
    x: Tensor, step: Tensor, rate: Tensor, write: Tensor, read: Tensor, start: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same of any operator for `forward`."""
    return x.new_empty(x.shape), x.new_empty(x.shape[0], x.shape[1], *rate.shape)


def backward(
    gradient: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    states: Tensor,
    start: Tensor | None,
    resets: Tensor | None,
) -> Gradients:
    """The gradients of (x, step, rate, write, read) and of the start, from that of y [L, B, E] and all states."""
    of_x, of_step, of_rate, of_write, of_read, of_start = _backward(gradient, list(inputs), states, start, resets)
    return of_x, of_step, of_rate, of_write, of_read, of_start


@torch.library.custom_op("turborec::selective_loops_backward", mutates_args=())
def _backward(
    gradient: Tensor, inputs: list[Tensor], states: Tensor, start: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The decays are computed once more: reading them again from memory would take as long."""
    ran["reference"] += 1
    x, step, rate, write, read = inputs
    gradient, kept = gradient.contiguous(), _kept(resets, x)
    whole, decay, through = (x.new_zeros(states.shape[1:]) for _ in range(3))  # `whole`: the gradient of h
    of_driven, of_write, of_read = x.new_empty(x.shape), write.new_empty(write.shape), read.new_empty(read.shape)
    of_step, of_rate = step.new_zeros(step.shape), torch.zeros_like(rate)
    driven = step * x
    with torch.autocast(x.device.type, enabled=False):
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
    return of_driven * step, of_step + of_driven * x, of_rate, of_write, of_read, whole


@_backward.register_fake
def shapes_of_backward(
    gradient: Tensor, inputs: list[Tensor], states: Tensor, start: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same of any operator for `backward`."""
    shaped = [t.new_empty(t.shape) for t in inputs]
    return shaped[0], shaped[1], shaped[2], shaped[3], shaped[4], states.new_empty(states.shape[1:])


def _kept(resets: Tensor | None, like: Tensor) -> Tensor | None:
    """What steps keep of the state before them: 0 where they begin anew, 1 elsewhere: bool [L, B] -> [L, B, 1, 1]."""
    return None if resets is None else (~resets).to(like.dtype)[:, :, None, None]
