"""Randomness that belongs to a row: bits and dropout as pure functions of the row's key, a site and a position.

The same row draws the same bits in any batch, at any padding, on any process and after any resume. It is also faster
on CPU than the stock dropout: one 64-bit hash serves eight channels. On an accelerator the hash is one kernel, or part of
those that a compiler makes. Letters: B rows, L positions, D width.
"""

from functools import cache
from types import ModuleType

import torch
from torch import Tensor, nn

# Multipliers of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, doi 10.1145/2660193.2660195), as signed 64-bit numbers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def _shift(x: Tensor, by: int) -> Tensor:
    """Logical right shift of int64, whose `>>` would copy the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's output function: a bijection of int64 whose images look random. Any shape, same shape."""
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def bits(keys: Tensor, site: int | Tensor, places: Tensor, words: int) -> Tensor:
    """64 random bits for each of `words` words at each place: keys [B], places [L] or [B, L] -> [B, L, words]."""
    if torch.compiler.is_compiling():
        site = torch.as_tensor(site, device=keys.device)
        # torch's compiler, given the arithmetic itself, makes other bits of it within a larger graph (docs/log.md).
        opaque: Tensor = _opaque_bits(keys, site, places, words)
        return opaque
    return _bits(keys, site, places, words)


def _bits(keys: Tensor, site: int | Tensor, places: Tensor, words: int) -> Tensor:
    if keys.is_cuda and (kernels := _kernels()) is not None:
        site = site if isinstance(site, Tensor) else torch.full((), site, dtype=torch.int64, device=keys.device)
        found: Tensor = kernels.bits(keys, site, places, words, (_GOLDEN, _FIRST, _SECOND))
        return found
    return _words(keys, site, places, words, torch.arange(words, device=keys.device))


def _words(
    keys: Tensor, site: int | Tensor, places: Tensor, words: int, chosen: Tensor, golden: int | Tensor = _GOLDEN
) -> Tensor:
    """Of the `words` words at each place those that are `chosen` [W]: [B, L, W]."""
    row = mix(mix(keys) + site)
    return mix(row[:, None, None] + (places[..., None] * words + chosen) * golden)


@cache
def _kernels() -> ModuleType | None:
    """Those of Triton, where it is installed."""
    try:
        from turborec.nn import keyed_triton
    except ImportError:
        return None
    return keyed_triton


@torch.library.custom_op("turborec::bits", mutates_args=())
def _opaque_bits(keys: Tensor, site: Tensor, places: Tensor, words: int) -> Tensor:
    return _bits(keys, site, places, words)


@_opaque_bits.register_fake
def _(keys: Tensor, site: Tensor, places: Tensor, words: int) -> Tensor:
    return keys.new_empty(keys.shape[0], places.shape[-1], words)  # `len` would tie the code to one size


def uniform(keys: Tensor, site: int, length: int) -> Tensor:
    """A number in [0, 1) for each position, float32: [B] -> [B, length]."""
    places = torch.arange(length, device=keys.device)
    return _shift(bits(keys, site, places, 1)[..., 0], 40).float() / 2**24  # 24 bits are what float32 holds exactly


class Dropout(nn.Module):
    """Dropout keyed by row. The rate is rounded to 1/256 and the scale follows the rounded rate, so the mean is exact."""

    site: Tensor
    golden: Tensor

    def __init__(self, rate: float, site: int) -> None:
        """`site` tells the places of a model apart; two places with one site would drop the same channels."""
        super().__init__()
        # A tensor, since a compiler would make other code of each layer for a number that differs.
        self.register_buffer("site", torch.tensor(site), persistent=False)
        # Nor would it multiply the number of a place by a constant of 64 bits without going beyond them.
        self.register_buffer("golden", torch.tensor(_GOLDEN), persistent=False)
        self.threshold = round(rate * 256)
        if not 0 <= self.threshold < 256:
            raise ValueError(f"expected a dropout rate in [0, 1), got {rate}")

    def forward(self, x: Tensor, keys: Tensor | None, at: Tensor | None = None) -> Tensor:
        """[B, L, D], [B] -> [B, L, D]; `at` [B, L]: which places x holds, if not the first L.

        The identity outside training, and where there are no keys.
        """
        if not self.training or self.threshold == 0 or keys is None:
            return x
        _, length, width = x.shape
        places = torch.arange(length, device=x.device) if at is None else at
        if x.is_cuda and torch.compiler.is_compiling():
            return x * self._kept(keys, places, width).to(x.dtype)
        noise = bits(keys, self.site, places, -(-width // 8)).view(torch.uint8)[..., :width]
        # Written as numbers at once: as truth values and then converted it takes five times as long (docs/log.md).
        kept = torch.ge(noise, self.threshold, out=torch.empty_like(noise, dtype=x.dtype))
        return x * kept.mul_(256 / (256 - self.threshold))

    def _kept(self, keys: Tensor, places: Tensor, width: int) -> Tensor:
        """What each channel counts, 0 or the scale, by arithmetic a compiler can make part of its kernels: [B, L, width].

        Every channel computes the word it shares with seven others, which costs an accelerator less than a launch.
        """
        channels = torch.arange(width, device=keys.device)
        words = _words(keys, self.site, places, -(-width // 8), channels // 8, self.golden)
        noise = (words >> (8 * (channels % 8))) & 255
        return torch.where(noise >= self.threshold, 256 / (256 - self.threshold), 0.0)
