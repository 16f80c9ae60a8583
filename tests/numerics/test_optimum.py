"""How far a trained model is from the best ranking there can be, on data whose distribution is known."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from turborec import recipes, run
from turborec.data.loader import evaluation_batches
from turborec.evaluate import evaluate
from turborec.sources.simulated import Oracle
from turborec.stores import Places

TREE = {
    "data": {"source": {"kind": "simulated", "users": 2000, "items": 150, "mean_length": 25.0, "clusters": 6, "cold": 0.0}},
    "batches": {"max_length": 30, "tokens": 2048},
    "model": {"kind": "sasrec", "width": 32, "hidden": 64, "dropout": 0.1},
    "train": {"epochs": 14, "optimizer": {"lr": 0.005}, "schedule": {"kind": "cosine", "warmup": 0.05}},
    "evaluation": {"history": "kept"},  # the simulated users come back to what they had
}


@dataclass
class OracleScorer:
    """The true log-probabilities of the next item."""

    oracle: Oracle
    store: object

    def users(self, batch):
        users = self.oracle.user_numbers(self.store.user_ids.raw(batch.users.tolist()))
        last = batch.items[torch.arange(len(batch.items)), batch.last()]
        when = batch.times[torch.arange(len(batch.items)), batch.last()]
        return torch.from_numpy(self.oracle.log_probability(users, last.numpy(), when.numpy()))

    def score(self, state, lo, hi):
        return state[:, lo - 1 : hi - 1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("optimum")
    recipe = recipes.from_tree(TREE, "the test")
    options = Places(home=place / "home")
    done, results = run.train(recipe, place / "run", options)
    scorer = OracleScorer(Oracle(recipe.data.source), done.store)
    batches = evaluation_batches(done.store, "test", recipe.batches)
    best = evaluate(scorer, batches, done.store, "test", recipe.evaluation, torch.device("cpu"), 30)
    return {name: result.kept["ndcg@10"] for name, result in results.items()} | {"optimum": best.kept["ndcg@10"]}


def test_every_item_sold_so_ids_agree(trained):
    assert np.isfinite(list(trained.values())).all()


def test_nothing_ranks_better_than_the_optimum(trained):
    assert max(trained.values()) == trained["optimum"]


def test_the_model_comes_close_to_the_optimum_and_far_beyond_popularity(trained):
    assert trained["sasrec"] > 0.9 * trained["optimum"], trained
    assert trained["sasrec"] > 2 * trained["popularity"], trained
