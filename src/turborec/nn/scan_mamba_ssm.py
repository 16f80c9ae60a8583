"""Mamba's recurrence by the kernels of its authors' package, mamba-ssm (extra `mamba`, for CUDA); no other file imports it.

Letters as in `scan`: L steps, B rows, E channels, N states of a channel.
"""

import torch
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import Tensor

from turborec.nn.scan_loops import ran


# Code in C++ that compilers cannot look into: a graph ends here.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def histories(x: Tensor, step: Tensor, rate: Tensor, write: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
    """As `scan.selective_scan`, in float32 and of whole histories: the kernels know no start and no steps that begin anew.

    They have rows first and steps last, [B, E, L] and [B, N, L], and rates as [E, N].
    """
    if x.dtype != torch.float32:
        raise ValueError(f"mamba-ssm is given float32, got {x.dtype}")
    ran["mamba_ssm"] += 1
    u, delta, b, c = (t.permute(1, 2, 0).contiguous() for t in (x, step, write, read))
    y, last = selective_scan_fn(u, delta, rate.T.contiguous(), b, c, return_last_state=True)
    return y.permute(2, 0, 1), last.transpose(1, 2)
