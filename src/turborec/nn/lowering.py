"""Which code computes recurrences: loops, our kernels of Triton, or those of the package mamba-ssm; all have one mathematics.

The kernels compute in float32. What is chosen here is what runs: nothing is left out where a kernel is missing or fails.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from turborec.errors import UserError
from turborec.nn import scan_loops

Kernels = Literal["auto", "reference", "triton", "mamba_ssm"]
"""auto: the best that the device has; else the named one, or an error. reference: the loops."""

log = logging.getLogger("turborec")


@dataclass(frozen=True)
class Lowering:
    """A way to compute recurrences. `scan_loops` says what each function takes and gives."""

    name: str
    walk: Callable[[Tensor, Tensor, bool], Tensor]
    forward: Callable[..., tuple[Tensor, Tensor]]
    backward: Callable[..., scan_loops.Gradients]
    histories: Callable[..., tuple[Tensor, Tensor]] | None = None
    """Mamba's recurrence over whole histories, which begin at zero and nowhere anew, with a backward pass of its own."""
    others: str = ""
    """The name of what computes everything else, where `histories` is there."""


REFERENCE = Lowering("reference", scan_loops.walk, scan_loops.forward, scan_loops.backward)


def best(tensor: Tensor) -> Lowering:
    """What `auto` takes for a tensor: the kernels of its device where its type is theirs, or else the loops."""
    if not tensor.is_cuda or tensor.dtype not in (torch.float32, torch.complex64):
        return REFERENCE
    return _best_of_cuda()


def chosen(kernels: Kernels, device: torch.device) -> Lowering:
    """The lowering of this name on a device; a UserError where the device or the machine lacks it."""
    if kernels == "reference" or (kernels == "auto" and device.type != "cuda"):
        return REFERENCE
    if kernels == "auto":
        return _best_of_cuda()
    if device.type != "cuda":
        raise UserError(f"train.kernels={kernels} needs a CUDA device, and this is {device.type}. Use auto or reference.")
    try:
        return _triton() if kernels == "triton" else _with_mamba_ssm(_without_mamba_ssm())
    except ImportError as error:
        lacking = {"triton": "pip install triton", "mamba_ssm": "pip install 'turborec[mamba]'"}[kernels]
        raise UserError(
            f"train.kernels={kernels} was asked for and cannot be loaded ({error}). Install it ({lacking}), or use auto or "
            "reference."
        ) from error


@cache
def _best_of_cuda() -> Lowering:
    """Told once where a kernel that could be there is not."""
    ours = _without_mamba_ssm()
    if find_spec("mamba_ssm") is None:
        return ours
    try:
        return _with_mamba_ssm(ours)
    except ImportError as error:
        log.warning(f"mamba-ssm is installed and cannot be loaded ({error}): Mamba's recurrence runs by {ours.name}.")
        return ours


@cache
def _without_mamba_ssm() -> Lowering:
    try:
        return _triton()
    except ImportError as error:
        log.warning(f"Recurrences run step by step, which is slow on an accelerator: Triton cannot be loaded ({error}).")
        return REFERENCE


def _triton() -> Lowering:
    from turborec.nn import scan_triton

    return Lowering("triton", scan_triton.walk, scan_triton.forward, scan_triton.backward)


def _with_mamba_ssm(other: Lowering) -> Lowering:
    """Histories by mamba-ssm; S5, users who are followed, and histories that begin anew in between, by the other one."""
    from turborec.nn import scan_mamba_ssm

    return replace(other, name="mamba_ssm", histories=scan_mamba_ssm.histories, others=other.name)
