"""Whether models read time: on data whose next item follows from the last item and the gap before it."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from stores import store_of
from turborec import recipes, run
from turborec.data.loader import evaluation_batches
from turborec.evaluate import evaluate
from turborec.stores import Places

ITEMS, USERS, LENGTH = 40, 1000, 20
SHORT, LONG = 60, 2 * 86_400
FOLLOWED = 0.9

TREE = {
    "data": {"source": {"kind": "online_retail"}},
    "batches": {"max_length": 20, "tokens": 2000},
    "model": {"kind": "ss4rec", "width": 32, "layers": 1, "states": 8, "memory": 4, "dropout": 0.1},
    "train": {"epochs": 16, "optimizer": {"lr": 0.01}, "schedule": {"kind": "cosine", "warmup": 0.05}},
    "evaluation": {"history": "kept"},
    "anchors": False,
}


def successors():
    """[2, V + 1]: what follows each item after a short gap and after a long one."""
    generator = np.random.default_rng(0)
    return np.stack([np.concatenate([[0], generator.permutation(ITEMS) + 1]) for _ in range(2)])


def histories():
    """Items and times of every user: gaps are drawn first, and each next item mostly follows from the item and its gap."""
    generator, follow = np.random.default_rng(1), successors()
    items, times = [], []
    for _ in range(USERS):
        long = generator.random(LENGTH) < 0.5
        row = [int(generator.integers(1, ITEMS + 1))]
        for k in range(1, LENGTH):
            # The gap of event k - 1 is the one before it, which the model is shown together with it.
            follows = generator.random() < FOLLOWED
            row.append(int(follow[int(long[k - 1]), row[-1]] if follows else generator.integers(1, ITEMS + 1)))
        gaps = np.where(long, LONG, SHORT)
        times.append((10**9 + np.concatenate([[0], np.cumsum(gaps[1:])])).tolist())
        items.append(row)
    return items, times


@dataclass
class Optimum:
    """The true probabilities of the next item."""

    def users(self, batch):
        place = torch.arange(len(batch.items))
        last = batch.last()
        gaps = batch.times[place, last] - batch.times[place, last - 1]
        chosen = torch.from_numpy(successors())[(gaps == LONG).long(), batch.items[place, last]]
        scores = torch.full((len(batch.items), ITEMS), (1 - FOLLOWED) / ITEMS, dtype=torch.float64)
        return scores.scatter_add(1, chosen[:, None] - 1, torch.full_like(chosen, FOLLOWED, dtype=torch.float64)[:, None])

    def score(self, state, lo, hi):
        return state[:, lo - 1 : hi - 1]


@pytest.fixture(scope="module")
def reached(tmp_path_factory):
    """NDCG@10 of the optimum, of the model, and of the model that is blind to time."""
    place = tmp_path_factory.mktemp("time")
    items, times = histories()
    store = store_of(place / "store", items, items=ITEMS, times=times)
    values = {}
    for name, intervals in (("aware", {"kind": "log"}), ("blind", {"kind": "none"})):
        recipe = recipes.from_tree({**TREE, "model": {**TREE["model"], "intervals": intervals}}, "the test")
        _, results = run.train(recipe, place / name, Places(home=place, store=store.folder))
        values[name] = results["ss4rec"].kept["ndcg@10"]
    batches = evaluation_batches(store, "test", recipe.batches)
    best = evaluate(Optimum(), batches, store, "test", recipe.evaluation, torch.device("cpu"), 20)
    return values | {"optimum": best.kept["ndcg@10"]}


def test_the_model_comes_close_to_the_optimum(reached):
    assert 0.9 * reached["optimum"] < reached["aware"] <= reached["optimum"] + 0.01, reached


def test_a_model_that_is_blind_to_time_does_not(reached):
    assert reached["blind"] < 0.9 * reached["optimum"], reached
