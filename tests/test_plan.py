import numpy as np
import pytest

from stores import store_of
from turborec import plan, recipes
from turborec.assembly import assemble
from turborec.errors import UserError

TREE = {
    "data": {"source": {"kind": "online_retail"}},
    "batches": {"max_length": 12, "tokens": 192},
    "model": {"kind": "sasrec", "width": 16, "hidden": 32},
    "train": {"epochs": 3, "average": 0.9},
}


@pytest.fixture
def store(tmp_path):
    generator = np.random.default_rng(0)
    return store_of(
        tmp_path / "store", [generator.integers(1, 31, generator.integers(3, 20)).tolist() for _ in range(25)], items=30
    )


def test_a_forecast_counts_what_can_be_counted(store, tmp_path):
    assembly = assemble(recipes.from_tree(TREE, "the test"), store)
    found = plan.forecast(assembly, tmp_path / "not" / "there")
    parameters = sum(p.numel() for p in assembly.model.parameters())
    assert found.sizes.parameters.tables == 31 * 16 and found.sizes.parameters.total == parameters
    assert found.sizes.weights == found.sizes.gradients == 4 * parameters
    assert found.sizes.optimizer >= 3 * 4 * parameters  # two moments and the average
    assert found.sizes.activations > 0 and found.problems == ()
    assert found.times.total == pytest.approx(3 * (found.times.epoch + found.times.validation))


def test_rarer_validations_take_less_time(store, tmp_path):
    tree = TREE | {"train": {"epochs": 7}, "then": [{"epochs": 2}], "stopping": {"every": 3}}
    times = plan.forecast(assemble(recipes.from_tree(tree, "the test"), store), tmp_path).times
    assert times.total == pytest.approx(9 * times.epoch + (3 + 1) * times.validation)  # after 3, 6, 7; and 2


def test_a_run_that_does_not_fit_is_refused_with_what_would(store, tmp_path, monkeypatch):
    monkeypatch.setattr(plan.hardware, "free_memory", lambda _: 2**20)
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    *_, memory, disk = plan.forecast(assemble(recipes.from_tree(TREE, "the test"), store), tmp_path).problems
    assert "lower batches.tokens" in memory and "lower checkpoints.keep" in disk


def test_a_counted_model_needs_no_plan(store, tmp_path):
    recipe = recipes.from_tree({"data": TREE["data"], "model": {"kind": "markov"}}, "the test")
    with pytest.raises(UserError, match="nothing to plan"):
        plan.forecast(assemble(recipe, store), tmp_path)
