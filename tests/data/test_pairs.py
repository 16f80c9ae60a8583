"""Training pairs: each once an epoch, dealt to processes, with an item that the user has not, drawn evenly."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stores import store_of
from turborec.data.batch import DataSpec, Interactions, PairBatch
from turborec.data.loader import Batches
from turborec.data.negatives import Unseen
from turborec.data.pairs import PairBatches, interactions

HISTORIES = [[1, 2, 3, 4], [5, 5, 6, 5, 7, 1], [2], [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2], [9, 8, 3, 1]]
TRAINED = {(0, 1), (0, 2), (1, 5), (1, 6), (2, 2), (4, 9), (4, 8)} | {(3, item) for item in range(1, 10)}


@pytest.fixture
def store(tmp_path):
    return store_of(tmp_path / "store", HISTORIES, items=10)


def pairs_of(batches):
    return [pair for batch in batches for pair in zip(batch.users.tolist(), batch.items.tolist(), strict=True) if pair[1]]


def batches_of(epoch):
    return [epoch.batch(step) for step in range(len(epoch))]


def test_the_graph_is_the_distinct_pairs_of_the_training_part(store):
    graph = interactions(store)
    assert list(zip(graph.users.tolist(), graph.items.tolist(), strict=True)) == sorted(TRAINED)


def test_an_epoch_asks_for_each_pair_once_and_differs_from_the_next(store):
    plan = PairBatches(store, Batches(tokens=5), seed=1)
    orders = [pairs_of(batches_of(plan.epoch(number))) for number in (0, 1, 0)]
    # User 3 has every item that training knows: there is nothing to prefer them to.
    assert all(sorted(order) == sorted(pair for pair in TRAINED if pair[0] != 3) for order in orders)
    assert orders[0] == orders[2] != orders[1]
    epoch = plan.epoch(0)
    assert len(epoch) == 4 and epoch.targets == len(TRAINED) and epoch.fill == 1.0
    for batch in batches_of(epoch):
        assert batch.num_targets() == int((batch.items > 0).sum()) and batch.size() == (batch.num_targets(), len(batch.items))
        assert torch.equal(batch.negatives > 0, batch.items > 0)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_pairs_of_each_batch(store, processes):
    def rows(batch):
        found = torch.stack([batch.users, batch.items, batch.negatives, batch.keys], dim=1).tolist()
        return {tuple(row) for row in found if row[1]}

    alone = PairBatches(store, Batches(tokens=5), seed=1).epoch(3)
    shares = [PairBatches(store, Batches(tokens=5), seed=1, deal=(rank, processes)).epoch(3) for rank in range(processes)]
    for step in range(len(alone)):
        parts = [rows(share.batch(step)) for share in shares]
        assert set().union(*parts) == rows(alone.batch(step)) and sum(map(len, parts)) == len(rows(alone.batch(step)))


def test_a_batch_is_split_into_its_rows_and_one_of_nothing_asks_for_nothing(store):
    batch = PairBatches(store, Batches(tokens=100), seed=1).epoch(0).batch(0)
    parts = batch.split(3)
    for name in ("users", "items", "negatives", "keys"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    assert sum(part.num_targets() for part in parts) == batch.num_targets()
    nothing = batch.nothing()
    assert nothing.num_targets() == 0 and len(nothing.items) == 1 and not nothing.items.any()
    example = PairBatch.example(DataSpec(3, 9, 5, graph=interactions(store)), 40, torch.Generator().manual_seed(0))
    assert set(pairs_of([example])) <= TRAINED and (example.items != example.negatives).all()


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(2, 9))
def test_a_negative_is_an_item_of_training_that_the_user_has_not(seed, users, items):
    generator = np.random.default_rng(seed)
    owner, item = np.nonzero(generator.random((users, items)) < 0.5)
    if not len(owner):
        return
    graph = Interactions(torch.from_numpy(owner.astype(np.int32)), torch.from_numpy((item + 1).astype(np.int32)))
    people = generator.integers(0, users, 200)
    drawn = Unseen(graph, users).draw(people, generator.integers(-(2**63), 2**63 - 1, 200))
    trained = set((item + 1).tolist())
    for user, found in zip(people.tolist(), drawn.tolist(), strict=True):
        own = set((item[owner == user] + 1).tolist())
        assert found in trained - own if trained - own else found == 0


def test_every_other_item_is_drawn_as_often(store):
    draws = 60_000
    drawn = Unseen(interactions(store), len(HISTORIES)).draw(np.full(draws, 1), np.arange(draws))
    items, counts = np.unique(drawn, return_counts=True)
    assert items.tolist() == [1, 2, 3, 4, 7, 8, 9]  # 10 is in no training, 5 and 6 are the user's
    expected = draws / len(items)
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
