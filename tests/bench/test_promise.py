"""Levers are held to what they promise."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from stores import store_of
from turborec import recipes
from turborec.assembly import assemble
from turborec.bench import levers, matrix, promise
from turborec.bench.evidence import observe
from turborec.bench.levers import changed, lever
from turborec.bench.promise import Gate, differences, judge
from turborec.data.loader import TrainingBatches

KINDS = ("sasrec", "bert4rec", "gru4rec")


def recipe_of(kind, **train):
    tree = {
        "data": {"source": {"kind": "online_retail"}},
        "batches": {"max_length": 12, "tokens": 192},
        "model": {"kind": kind, "width": 16, "hidden": 32},
        "train": {"optimizer": {"kind": "adamw", "lr": 1e-2}, "precision": "float32", **train},
    }
    return recipes.from_tree(tree, "the test")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    generator = np.random.default_rng(0)
    histories = [generator.integers(1, 301, generator.integers(3, 20)).tolist() for _ in range(80)]
    return store_of(tmp_path_factory.mktemp("promise") / "store", histories, items=300)


@pytest.mark.parametrize("kind", KINDS)
def test_bucketing_is_exact(store, kind):
    off, on = (changed(recipe_of(kind), part) for part in (lever("bucketing").off, lever("bucketing").on))
    loss, gradient = differences(assemble(off, store), assemble(on, store))
    assert loss < 1e-6 and gradient < 1e-5


def test_a_reduced_precision_is_close_and_not_exact(store):
    off, on = (changed(recipe_of("sasrec"), part) for part in (lever("bf16").off, lever("bf16").on))
    assert judge(lever("bf16"), off, on, store, "cpu", Gate()).kept
    assert not judge(replace(lever("bf16"), promise="exact"), off, on, store, "cpu", Gate()).kept


def test_another_objective_is_not_exact(store):
    wrong = replace(lever("sampled"), promise="exact")
    off, on = (changed(recipe_of("sasrec"), part) for part in (wrong.off, wrong.on))
    assert not judge(wrong, off, on, store, "cpu", Gate()).kept


def test_the_weights_of_both_are_the_same_whatever_the_seed(store):
    one, other = assemble(recipe_of("sasrec"), store), assemble(recipe_of("sasrec").model_copy(update={"seed": 9}), store)
    assert not torch.equal(one.model.items.weight, other.model.items.weight)
    differences(one, other)
    assert torch.equal(one.model.items.weight, other.model.items.weight)


def test_another_mathematics_is_judged_by_its_ranking(tmp_path):
    walks = [[1 + (start + step) % 20 for step in range(12)] for start in range(60)]
    store = store_of(tmp_path / "store", walks, items=20)
    good, bad = (
        recipe_of("gru4rec"),
        recipe_of("gru4rec").model_copy(update={"train": recipe_of("gru4rec", optimizer={"lr": 1e-9}).train}),
    )
    assert judge(lever("muon"), good, good, store, "cpu", Gate()).kept is None
    assert judge(lever("muon"), good, good, store, "cpu", Gate(4, 2)).kept
    assert judge(lever("muon"), good, bad, store, "cpu", Gate(4, 2)).kept is False


def test_a_broken_promise_is_a_failure(store, monkeypatch):
    lying = tuple(replace(one, promise="exact") if one.name == "bf16" else one for one in levers.LEVERS)
    monkeypatch.setattr(levers, "LEVERS", lying)
    found = matrix.run(recipe_of("sasrec"), store, matrix.Plan(("bf16",), (), 2, 0.01, False), "cpu")["levers"][0]
    assert found["failed"].startswith("it did not keep its promise: loss within") and found["gain"] is None
    assert promise.ALLOWED["exact"] < promise.ALLOWED["close"]


def test_what_is_no_number_keeps_no_promise(store, monkeypatch):
    off, on = (changed(recipe_of("sasrec"), part) for part in (lever("bucketing").off, lever("bucketing").on))
    true = promise._gradient

    def broken(assembly, batch):
        loss, gradients = true(assembly, batch)
        return (math.nan if assembly.recipe == on else loss), gradients

    monkeypatch.setattr(promise, "_gradient", broken)
    assert judge(lever("bucketing"), off, on, store, "cpu", Gate()).kept is False


def test_bucketing_is_compared_at_as_many_rows_a_step(store):
    """Not at as many padded positions: fewer rows would be fewer targets, and another training."""
    recipe = recipe_of("sasrec")
    off = matrix._variants(recipe, store, [lever("bucketing")], (), torch.device("cpu"))["without bucketing"]
    rows = [len(order) for order in TrainingBatches(store, recipe.batches, 1).epoch(0).order]
    rows_off = [len(order) for order in TrainingBatches(store, off.batches, 1).epoch(0).order]
    assert max(rows_off) == round(sum(rows) / len(rows)) and abs(len(rows) - len(rows_off)) <= 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile warns of itself
def test_compiled_layers_are_seen_to_run_and_are_exact(store):
    off, on = (changed(recipe_of("sasrec"), part) for part in (lever("compile").off, lever("compile").on))
    seen = observe(matrix.contestant("with compile", on, store, "cpu"))
    plain = observe(matrix.contestant("without compile", off, store, "cpu"))
    assert seen.graphs > 0 and seen.regions > 0 and plain.regions == 0
    assert lever("compile").proof(plain, seen) and not lever("compile").proof(plain, plain)
    loss, gradient = differences(assemble(off, store), assemble(on, store))
    assert loss < 1e-5 and 0 < gradient < 1e-4  # other code, so other roundings
