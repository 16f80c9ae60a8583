"""Sums over samples of a graph: exact where all edges are taken, right on the mean where some are."""

import pytest
import torch

from sparse import dense
from turborec.nn import sampled
from turborec.nn.graph import symmetric

USERS, ITEMS = 20, 15


def graph(density=0.4):
    row, column = (torch.rand(USERS, ITEMS, generator=torch.Generator().manual_seed(0)) < density).nonzero(as_tuple=True)
    return symmetric(row, column + 1, (USERS, ITEMS))


def table():
    return torch.randn(USERS + ITEMS + 1, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()


def estimate(both, x, nodes, most, key, layers=2):
    return sampled.sums(both.ahead, lambda at: x[at], nodes, layers, most, key)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_with_all_edges_sums_and_gradients_are_exact(layers):
    both, x, nodes = graph(), table(), torch.tensor([0, 3, 19, 20, 25, 35])
    found, exact = estimate(both, x, nodes, most=99, key=5, layers=layers), both.sums(x, layers, nodes)
    assert torch.allclose(found, exact, atol=1e-6)
    gradients = [torch.autograd.grad(one.square().sum(), x)[0] for one in (found, exact)]
    assert torch.allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("layers", [2, 3])
def test_with_some_edges_sums_are_right_on_the_mean(layers):
    both, x, nodes = graph(), table().detach(), torch.tensor([0, 3, 19, 25])
    draws = torch.stack([estimate(both, x, nodes, most=2, key=1000 * key, layers=layers) for key in range(4000)]).double()
    matrix = dense(both.ahead)
    exact = sum(torch.linalg.matrix_power(matrix, layer) @ x.double() for layer in range(layers + 1))[nodes]
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - exact).abs() < 4.5 * error + 1e-6).all() and (draws.std(0) > 0).any()


def test_a_node_draws_the_same_in_whatever_company():
    both, x = graph(), table().detach()
    nodes = torch.arange(0, 36)
    together = estimate(both, x, nodes, most=2, key=7)
    alone = torch.cat([estimate(both, x, nodes[i : i + 1], most=2, key=7) for i in range(36)])
    assert torch.allclose(together, alone, atol=1e-6)
    assert not torch.allclose(together, estimate(both, x, nodes, most=2, key=8))


def test_a_hop_takes_no_more_than_it_may_and_each_entry_as_often():
    both, nodes = graph(density=0.9), torch.arange(USERS)
    counts = torch.zeros(USERS, USERS + ITEMS + 1)
    for key in range(3000):
        one, further = sampled.hop(both.ahead, nodes, 3, key * 17)
        assert one.offsets.diff().max() <= 3
        rows = torch.repeat_interleave(nodes, one.offsets.diff())
        counts.index_put_((rows, further[one.columns]), torch.ones(len(rows)), accumulate=True)
    there = dense(both.ahead)[:USERS] > 0
    assert not counts[~there].any()
    for user in range(USERS):
        expected = 3 * 3000 / int(there[user].sum())
        assert ((counts[user][there[user]] - expected).abs() < 5 * expected**0.5).all()
