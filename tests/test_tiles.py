from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from turborec import tiles
from turborec.tiles import TopK, cells_by_tile, distinct, hide, tile_edges

CPU = torch.device("cpu")


def best(scores: list[float], k: int) -> list[int]:
    """Items 1..V in order of score, equal ones in order of item; 0 where only -inf is left."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    listed = [i + 1 for i in order if scores[i] > -np.inf][:k]
    return listed + [0] * (k - len(listed))


@given(
    st.integers(1, 25).flatmap(
        lambda n: st.lists(st.lists(st.sampled_from([-np.inf, 0, 1, 2, 3]), min_size=n, max_size=n), min_size=1, max_size=4)
    ),
    st.integers(1, 8),
    st.integers(1, 25),
)
def test_lists_are_those_of_a_full_stable_sort_whatever_the_tiles(scores, k, width):
    table = torch.tensor(scores, dtype=torch.float32)
    top = TopK(len(scores), k, CPU)
    for lo in range(0, table.shape[1], width):
        top.offer(table[:, lo : lo + width], lo + 1)
    assert top.items.tolist() == [best(user, k) for user in scores]
    assert top.scores.tolist() == [[user[i - 1] if i else -np.inf for i in best(user, k)] for user in scores]


def test_float64_scores_are_told_apart_beyond_float32():
    top = TopK(1, 2, CPU)
    top.offer(torch.tensor([[1.0, 1 + 1e-12, 0.0]], dtype=torch.float64), 1)
    assert top.items.tolist() == [[2, 1]]


def test_tiles_cover_every_item_once_within_their_size(monkeypatch):
    monkeypatch.setattr(tiles, "CPU_TILE_BYTES", 4 * 3 * 10)
    assert tile_edges(3, 25, CPU) == [1, 11, 21, 26]
    assert tile_edges(1000, 3, CPU) == [1, 2, 3, 4]


def test_cells_fall_into_their_tiles():
    cells = {(0, 1), (1, 1), (1, 4), (0, 5), (1, 7)}
    keys = np.array(sorted(item * 2 + row for row, item in cells))
    edges = [1, 4, 6, 8]
    found = {
        (place // (hi - lo), place % (hi - lo) + lo)
        for places, (lo, hi) in zip(cells_by_tile(keys, 2, edges, CPU), pairwise(edges), strict=True)
        for place in places.tolist()
    }
    assert found == cells


@pytest.mark.parametrize("tile", [torch.zeros(2, 3), torch.zeros(3).expand(2, 3)])
def test_hiding_leaves_the_scores_of_the_scorer_alone(tile):
    hidden = hide(tile, torch.tensor([2]))
    assert hidden.tolist() == [[0, 0, -np.inf], [0, 0, 0]]
    assert not tile.any()


@pytest.mark.parametrize("high", [10, 2**31 - 1, 2**40])
def test_distinct_keys_are_those_of_a_set(high):
    keys = np.random.default_rng(0).integers(0, high, 500)
    keys = np.concatenate([keys, keys[:100], [high]])
    assert distinct(keys).tolist() == sorted(set(keys.tolist()))
    assert distinct(keys[:0]).tolist() == [] and distinct(-keys).tolist() == sorted(set((-keys).tolist()))
