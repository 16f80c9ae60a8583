"""The bits that belong to rows, as one kernel of Triton: twenty of torch's on an accelerator, each a launch of its own.

Letters as in `keyed`: B rows, L positions.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

WORDS = 1024
"""Words of a program."""


@triton.jit
def _mixed(x, FIRST: tl.constexpr, SECOND: tl.constexpr):
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * FIRST
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * SECOND
    return x ^ ((x >> 31) & ((1 << 33) - 1))


@triton.jit(do_not_specialize=["length", "words", "apart", "total"])
def _bits(keys, site, places, out, length, words, apart, total, GOLDEN: tl.constexpr, FIRST: tl.constexpr,
          SECOND: tl.constexpr, WORDS: tl.constexpr):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    here = at < total
    spot, word = at // words, at % words
    row, position = spot // length, spot % length
    key = tl.load(keys + row, mask=here, other=0)
    place = tl.load(places + row * apart + position, mask=here, other=0)
    mixed = _mixed(_mixed(key, FIRST, SECOND) + tl.load(site), FIRST, SECOND)
    tl.store(out + at, _mixed(mixed + (place * words + word) * GOLDEN, FIRST, SECOND), mask=here)


def bits(keys: Tensor, site: Tensor, places: Tensor, words: int, constants: tuple[int, int, int]) -> Tensor:
    """As `keyed.bits`, of whose constants these are: the step of the counter, and the two multipliers."""
    length = places.shape[-1]
    out = keys.new_empty(len(keys), length, words)
    if not out.numel():
        return out
    golden, first, second = constants
    kernel: Any = _bits
    grid = (triton.cdiv(out.numel(), WORDS),)
    apart = length if places.ndim == 2 else 0  # of a row's places from those of the row before
    with torch.cuda.device_of(keys):
        kernel[grid](
            keys.contiguous(), site, places.contiguous(), out, length, words, apart, out.numel(),
            GOLDEN=golden, FIRST=first, SECOND=second, WORDS=WORDS,
        )  # fmt: skip
    return out
