"""Sparse products and their gradients, against dense matrices and against loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse import dense
from turborec.nn.graph import Both, Sparse, by_library, distinct, means, symmetric

USERS, ITEMS = 5, 7
NODES = USERS + ITEMS + 1


def pairs(users=USERS, items=ITEMS, seed=0, density=0.3):
    has = torch.rand(users, items, generator=torch.Generator().manual_seed(seed)) < density
    has[0], has[:, 2] = False, False  # a user and an item without edges
    row, column = has.nonzero(as_tuple=True)
    return row.int(), (column + 1).int()


def rows_of(size, seed=1, width=4):
    return torch.randn(size, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def test_the_weights_of_an_edge_are_those_of_lightgcn():
    users, items = pairs()
    matrix, edges = dense(symmetric(users, items, (USERS, ITEMS)).ahead), list(zip(users.tolist(), items.tolist(), strict=True))
    of_user = [sum(u == user for u, _ in edges) for user in range(USERS)]
    of_item = [sum(i == item for _, i in edges) for item in range(ITEMS + 1)]
    expected = torch.zeros(NODES, NODES, dtype=torch.float64)
    for user, item in edges:
        weight = 1 / math.sqrt(of_user[user] * of_item[item])
        expected[user, USERS + item] = expected[USERS + item, user] = weight
    assert torch.allclose(matrix, expected, atol=1e-7) and torch.equal(matrix, matrix.T)


def test_a_mean_is_of_the_neighbours_and_zero_where_there_are_none():
    users, items = pairs()
    x, graph = rows_of(NODES), means(users, items, (USERS, ITEMS))
    found = graph(x)
    for node in range(NODES):
        near = [USERS + i for u, i in zip(users.tolist(), items.tolist(), strict=True) if u == node]
        near += [u for u, i in zip(users.tolist(), items.tolist(), strict=True) if USERS + i == node]
        expected = torch.stack([x[other] for other in near]).mean(0) if near else torch.zeros(4)
        assert torch.allclose(found[node], expected.double(), atol=1e-7)
    assert not found[0].any() and not found[USERS].any() and not found[USERS + 3].any()


@pytest.mark.parametrize("layers", [0, 1, 2, 4])
@pytest.mark.parametrize("rows", [None, [3, 11, 3, 0]], ids=["all", "some"])
def test_sums_and_their_gradients_are_those_of_the_powers(layers, rows):
    graph = symmetric(*pairs(), (USERS, ITEMS))
    matrix, x = dense(graph.ahead), rows_of(NODES)
    expected = sum((torch.linalg.matrix_power(matrix, layer) @ x for layer in range(layers + 1)), start=torch.zeros(()))
    at = None if rows is None else torch.tensor(rows)
    expected = expected if at is None else expected[at]
    found = graph.sums(x, layers, at)
    weight = torch.linspace(-1, 2, found.numel(), dtype=torch.float64).view_as(found)
    (gradient,) = torch.autograd.grad((found * weight).sum(), x)
    (expected_gradient,) = torch.autograd.grad((expected * weight).sum(), x)
    assert torch.allclose(found, expected, atol=1e-12) and torch.allclose(gradient, expected_gradient, atol=1e-12)


@pytest.mark.parametrize("rows", [None, [0, 4, 4]], ids=["all", "some"])
def test_a_product_that_is_not_symmetric_goes_back_by_its_transpose(rows):
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(6, 9, generator=generator) * (torch.rand(6, 9, generator=generator) < 0.4)
    row, column = matrix.nonzero(as_tuple=True)
    both, x = Both(Sparse(row, column, matrix[row, column], (6, 9))), rows_of(9)
    at = None if rows is None else torch.tensor(rows)
    assert torch.autograd.gradcheck(lambda x: both(x, at), (x,))
    expected = matrix.double() @ x
    assert torch.allclose(both(x, at), expected if at is None else expected[at], atol=1e-6)
    with pytest.raises(ValueError, match="symmetric"):
        both.sums(x, 2)


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
def test_renumbered_nodes_have_the_same_sums(seed, users, items):
    generator = torch.Generator().manual_seed(seed)
    row, column = (torch.rand(users, items, generator=generator) < 0.4).nonzero(as_tuple=True)
    people, goods = torch.randperm(users, generator=generator), torch.randperm(items, generator=generator)
    order = torch.randperm(len(row), generator=generator)
    x = rows_of(users + items + 1, seed)
    moved = torch.cat([people, torch.tensor([users]), users + 1 + goods])
    y = torch.empty_like(x).index_copy(0, moved, x)
    plain = symmetric(row, column + 1, (users, items)).sums(x, 3)
    renumbered = symmetric(people[row[order]], goods[column[order]] + 1, (users, items)).sums(y, 3)
    assert torch.allclose(renumbered[moved], plain, atol=1e-12)


def test_the_library_s_product_is_the_same():
    graph, x = symmetric(*pairs(80, 60, density=0.1), (80, 60)).ahead, torch.randn(141, 16)
    found = by_library(graph.offsets, graph.columns, graph.weights, x)
    assert torch.allclose(graph.product(x), found, atol=1e-6)
    at = torch.tensor([3, 140, 3, 0, 80])
    assert torch.allclose(graph.product(x, at), by_library(*graph._of(at), x), atol=1e-6)


def test_rows_travel_in_the_type_of_autocast_and_are_added_up_in_float32():
    graph, x = symmetric(*pairs(300, 200, density=0.2), (300, 200)), torch.randn(501, 32, requires_grad=True)
    exact = graph.sums(x, 3)
    (exact_gradient,) = torch.autograd.grad(exact.square().sum(), x)
    with torch.autocast("cpu", torch.bfloat16):
        found, mean = graph.sums(x, 3), graph(x)
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    assert found.dtype == torch.float32 and mean.dtype == torch.bfloat16 and gradient.dtype == torch.float32
    for one, other in ((found, exact), (gradient, exact_gradient)):
        assert (one - other).norm() < 5e-3 * other.norm() and not torch.equal(one, other)


def test_a_block_is_a_part():
    graph = means(*pairs(), (USERS, ITEMS)).ahead
    assert torch.equal(dense(graph.block((1, 5), (4, 13))), dense(graph)[1:5, 4:13])


def test_nodes_are_told_apart_once():
    found, (one, other) = distinct([torch.tensor([7, 2, 7]), torch.tensor([2, 9])])
    assert found.tolist() == [2, 7, 9] and one.tolist() == [1, 0, 1] and other.tolist() == [0, 2]


def test_a_graph_without_edges_gives_zeros():
    nothing = torch.zeros(0, dtype=torch.int32)
    graph, x = symmetric(nothing, nothing, (2, 3)), rows_of(6)
    assert torch.equal(graph.sums(x, 3), x) and not means(nothing, nothing, (2, 3))(x, torch.tensor([1, 4])).any()
