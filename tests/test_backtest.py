"""How often to train again: in a world whose taste changes once, and in one that stays as it is."""

import json
from pathlib import Path

import numpy as np
import pytest

from turborec import backtest, recipes, stores
from turborec.backtest import Backtest, Cost, _options
from turborec.errors import UserError
from turborec.stores import Places

TREE = {
    "data": {
        "source": {"kind": "simulated", "users": 700, "items": 80, "mean_length": 30.0, "clusters": 4, "weeks": 40}
        | {"sequential": 0.8, "cold": 0.0, "drift": "2020-08-10"},
        "prepare": {"min_user_events": 1, "min_item_events": 1},
        "split": {"kind": "global_time", "validation_from": "2020-06-01", "test_from": "2020-07-01"},
    },
    "batches": {"max_length": 20, "tokens": 2000},
    "model": {"kind": "sasrec", "width": 16, "hidden": 32, "dropout": 0.1, "layers": 1},
    "train": {"epochs": 4, "optimizer": {"lr": 0.01}},
}


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    place = tmp_path_factory.mktemp("backtest")
    recipe = recipes.from_tree(TREE, "the test")
    store = stores.of_recipe(recipe, Places(place / "home"))
    return backtest.backtest(recipe, store, "month", place / "out", sampled=700), (recipe, store, place / "out")


def test_training_again_pays_where_taste_has_changed(tested):
    found, _ = tested
    assert found.plan.names == ["2020-07-01 to 2020-08-01", "2020-08-01 to 2020-09-01", "2020-09-01 to 2020-10-01"]
    never = next(option for option in found.options if not option.every)
    again = next(option for option in found.options if option.way == "full" and option.every == 1)
    assert (
        never.events == 0 < again.events == found.options[-1].events
        and again.seconds > 0
        and again.by_period[0] == never.by_period[0]
    )
    assert again.value > never.value + 0.01
    assert never.loss[1] > 0 and found.recommended is not never
    json.dumps(found.to_json())


def test_what_is_trained_is_not_trained_again(tested, monkeypatch):
    found, (recipe, store, out) = tested
    before = {path: path.stat().st_mtime_ns for path in Path(out).glob("*/trained.json")}
    assert len(before) == 5
    monkeypatch.setattr(backtest, "fit", None)
    again = backtest.backtest(recipe, store, "month", out, sampled=700)
    assert again.to_json() == found.to_json()
    for change in ({"train": {**TREE["train"], "epochs": 3}}, {"model": {**TREE["model"], "width": 32}}, {"seed": 5}):
        other = recipes.from_tree({**TREE, **change}, "the test")
        with pytest.raises(UserError, match="full-0 holds a training of another recipe, store or period"):
            backtest.backtest(other, store, "month", out, sampled=700)
    with pytest.raises(UserError, match="full-1 holds a training of another"):
        backtest.backtest(recipe, store, 2, out, sampled=700)


def test_what_is_counted_does_not_go_on_from_what_it_was(tested, tmp_path):
    _, (_, store, _) = tested
    tree = {name: part for name, part in TREE.items() if name != "train"} | {"model": {"kind": "markov"}}
    found = backtest.backtest(recipes.from_tree(tree, "the test"), store, "month", tmp_path / "out", sampled=700)
    assert {option.way for option in found.options} == {"full"} and found.options[-1].events > 0


def test_a_store_that_is_not_split_by_time_is_told_to_be(tmp_path):
    tree = {**TREE, "data": {**TREE["data"], "split": {"kind": "leave_one_out"}}}
    recipe = recipes.from_tree(tree, "the test")
    store = stores.of_recipe(recipe, Places(tmp_path / "home"))
    with pytest.raises(UserError, match="Split it by time") as told:
        backtest.backtest(recipe, store, "month", tmp_path / "out")
    assert "--current" not in str(told.value)


def test_the_recommended_is_the_cheapest_that_is_not_shown_to_lose():
    generator = np.random.default_rng(0)
    alike = [generator.random(300) for _ in range(3)]
    full = [[alike[k] for k in range(j, 3)] for j in range(3)]
    costs = {"full": [Cost(500, 2.0)] * 3, "warm": [Cost(500, 2.0), Cost(100, 3.0), Cost(100, 3.0)]}

    def told(values, costs):
        options = _options(values, costs, 0)
        assert [option.events for option in options] == sorted(option.events for option in options)
        return Backtest("ndcg@10", None, options).recommended.name

    assert told({"full": full, "warm": full}, costs) == "never again"
    aged = [[alike[k] - 0.2 * (k - j) for k in range(j, 3)] for j in range(3)]
    assert told({"full": aged, "warm": aged}, costs) == "on, every period"
    # What costs as much but for a few percent is no cheaper: the better is taken, whatever the seconds are.
    costs["warm"] = [Cost(500, 2.0), Cost(495, 1.0), Cost(495, 1.0)]
    worse = [[one + generator.normal(-0.001, 0.1, 300) for one in row] for row in aged]
    assert told({"full": aged, "warm": worse}, costs) == "anew, every period"
