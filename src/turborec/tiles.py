"""Tiles of a score matrix, users x items: their edges, the cells that fall into them, and the best items of each user.

Letters: B users, V items, W items of a tile, N cells, k places of a list.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CPU_TILE_BYTES = 2**20
"""A tile that stays in the processor's cache is read several times without touching memory."""

GPU_TILE_BYTES = 64 * 2**20
"""A tile whose arithmetic outweighs the launching of its kernels."""


def tile_edges(users: int, items: int, device: torch.device) -> list[int]:
    """The first items of the tiles that make up 1..items, and items + 1 at the end."""
    size = CPU_TILE_BYTES if device.type == "cpu" else GPU_TILE_BYTES
    return [*range(1, items + 1, max(1, size // (4 * users))), items + 1]


def distinct(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """The different keys, ascending. numpy's own `unique` hashes whole numbers, which takes ten times as long (docs/log.md)."""
    narrow = keys.astype(np.int32) if len(keys) and keys.min() >= 0 and keys.max() < 2**31 else keys  # sorted twice as fast
    ordered = np.sort(narrow).astype(np.int64)
    return ordered[np.diff(ordered, prepend=ordered[:1] - 1) > 0]


def cells_by_tile(keys: NDArray[np.int64], users: int, edges: Sequence[int], device: torch.device) -> list[Tensor]:
    """Cells given by ascending keys item * B + row [N], as places in each of the flattened tiles between `edges`."""
    items, rows = np.divmod(keys, users)
    counts, widths = np.diff(np.searchsorted(items, edges)), np.diff(edges)
    places = rows * np.repeat(widths, counts) + items - np.repeat(edges[:-1], counts)
    return list(torch.split(torch.from_numpy(places).to(device), counts.tolist()))


def hide(tile: Tensor, cells: Tensor) -> Tensor:
    """A copy of the tile in which the cells, places in the flattened tile, score -inf: [B, W] -> [B, W]."""
    copy = tile.clone(memory_format=torch.contiguous_format)
    copy.view(-1).index_fill_(0, cells, -math.inf)
    return copy


class TopK:
    """The k best items of each user, kept while tiles pass by; equal scores go by item, ascending.

    An item that scores -inf is never listed. Places that stay empty hold item 0.
    """

    def __init__(self, users: int, k: int, device: torch.device) -> None:
        self.k = k
        self.items = torch.zeros(users, k, dtype=torch.int64, device=device)
        # float64 holds every float32 score exactly, so one kind of list serves both kinds of scorer.
        self.scores = torch.full((users, k), -math.inf, dtype=torch.float64, device=device)

    def offer(self, tile: Tensor, lo: int) -> None:
        """Scores [B, W] of items lo..lo + W - 1; tiles come in ascending order of their items."""
        # A later item loses against an earlier one of the same score, so it enters only by exceeding the last place.
        rows = (tile.amax(1) > self.scores[:, -1]).nonzero().squeeze(1)
        if not len(rows):
            return
        best, columns = _best(tile[rows], self.k, self.scores[rows, -1])
        # Listed items come first and are in order, so a stable sort leaves equal scores in order of their items.
        scores, order = torch.cat([self.scores[rows], best.double()], 1).sort(dim=1, descending=True, stable=True)
        items = torch.cat([self.items[rows], columns + lo], 1).gather(1, order)
        self.scores[rows] = scores[:, : self.k]
        self.items[rows] = items[:, : self.k].where(scores[:, : self.k] > -math.inf, 0)


def _best(tile: Tensor, k: int, bar: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and columns of each row's k best, equal scores by column, where the k-th exceeds `bar` [B]; else some k."""
    if tile.shape[1] <= k:
        scores, columns = tile.sort(dim=1, descending=True, stable=True)
        return scores, columns
    # topk takes any of several equal scores. It is asked for one place more than needed: where the last two places
    # differ it took the right columns, elsewhere a stable sort has to decide.
    values, columns = tile.topk(k + 1, 1)
    tied = ((values[:, k - 1] == values[:, k]) & (values[:, k] > bar)).nonzero().squeeze(1)
    columns = columns[:, :k]
    columns[tied] = tile[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    columns = columns.sort(dim=1).values
    scores, order = tile.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return scores, columns.gather(1, order)
