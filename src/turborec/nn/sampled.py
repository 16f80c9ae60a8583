"""Sums over a graph from samples of it, for graphs on which no step can afford a product with the whole.

Letters: n nodes, N_k nodes of hop k, E_k drawn entries, D width, K layers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from turborec.nn.graph import Sparse
from turborec.nn.keyed import bits


@dataclass(frozen=True)
class Hop:
    """Some rows of a matrix, each with some of its entries."""

    columns: Tensor  # int64 [E_k] places among the nodes of the next hop
    offsets: Tensor  # int64 [N_k + 1]
    weights: Tensor  # float32 [E_k]: an entry's own, times how many it stands for


def hop(matrix: Sparse, nodes: Tensor, most: int, key: int, layer: int = 0) -> tuple[Hop, Tensor]:
    """All entries of the rows that have `most` at most, and as many drawn evenly, with replacement, of each other row.

    int64 [N_k] -> the rows, and the nodes of the next hop, ascending. What is drawn follows from the key, the layer, the row
    and the draw's number, so a row has the same entries in whatever company. A product with the rows is right on the mean.
    """
    starts = matrix.offsets.index_select(0, nodes).long()
    degrees = matrix.offsets.index_select(0, nodes + 1).long() - starts
    counts = degrees.clamp(max=most)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    rows = torch.repeat_interleave(torch.arange(len(nodes), device=nodes.device), counts)
    draw = torch.arange(len(rows), device=nodes.device) - offsets[rows]
    noise = bits(nodes[rows] + key, layer, draw[:, None], 1)[:, 0, 0]
    chance = ((noise >> 11) & (2**53 - 1)).double() / 2**53
    drawn = (chance * degrees[rows]).long()
    whole = degrees[rows] <= most
    place = starts[rows] + torch.where(whole, draw, drawn)
    weights = matrix.weights[place] * torch.where(whole, 1.0, degrees[rows] / most)
    further, columns = torch.unique(matrix.columns[place].long(), return_inverse=True)
    return Hop(columns, offsets, weights), further


def sums(matrix: Sparse, read: Callable[[Tensor], Tensor], nodes: Tensor, layers: int, most: int, key: int) -> Tensor:
    """An estimate of the rows `nodes` of x + A x + … + A^K x that is right on the mean: int64 [N_0] -> [N_0, D].

    `read` gives the rows of x. Each layer draws by itself, so that the mean of a product is the product of the means.
    """
    hops, around = [], [nodes]
    for layer in range(layers):
        one, further = hop(matrix, around[-1], most, key, layer)
        hops.append(one)
        around.append(further)
    x = read(around[-1])
    for one, here in zip(reversed(hops), reversed(around[:-1]), strict=True):
        weights = one.weights.to(x.dtype)
        near = F.embedding_bag(one.columns, x, one.offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)
        x = read(here) + near
    return x
