"""The largest batches that fit, found in processes of their own and remembered."""

import json
import subprocess
import sys

import numpy as np
import pytest

from stores import store_of
from turborec import recipes
from turborec.bench import budget
from turborec.errors import UserError


def recipe_of(tokens=192, **model):
    return recipes.from_tree(
        {
            "data": {"source": {"kind": "online_retail"}},
            "batches": {"max_length": 12, "tokens": tokens},
            "model": {"kind": "sasrec", "width": 16, "hidden": 32} | model,
        },
        "the test",
    )


@pytest.fixture
def store(tmp_path):
    generator = np.random.default_rng(0)
    histories = [generator.integers(1, 31, generator.integers(3, 20)).tolist() for _ in range(200)]
    return store_of(tmp_path / "store", histories, items=30)


@pytest.fixture
def tried(monkeypatch):
    """Trials of a machine that holds a thousand tokens, in the order of their asking."""
    asked = []

    def trial(recipe, store, device, tokens):
        asked.append(tokens)
        return 1000 * tokens if tokens <= 1000 else None

    monkeypatch.setattr(budget, "_try", trial)
    return asked


@pytest.mark.parametrize("begin", [12, 100, 192, 1000, 2000])
def test_the_search_closes_in_on_what_fits(store, tried, tmp_path, begin):
    found = budget.largest(recipe_of(begin), store, "cpu", tmp_path)
    assert 1000 / budget.CLOSE <= found.tokens <= 1000 and not found.whole
    assert len(tried) == len(set(tried)) <= 12


def test_an_epoch_in_one_batch_is_enough(store, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "_try", lambda recipe, store, device, tokens: tokens)
    found = budget.largest(recipe_of(), store, "cpu", tmp_path)
    assert found.whole and found.tokens < 12 * 1000


def test_where_nothing_fits_that_is_said(store, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "_try", lambda recipe, store, device, tokens: None)
    with pytest.raises(UserError, match="Not even one row"):
        budget.largest(recipe_of(), store, "cpu", tmp_path)


def test_it_is_remembered_for_recipe_data_and_machine(store, tried, tmp_path):
    first = budget.largest(recipe_of(192), store, "cpu", tmp_path)
    asked = len(tried)
    again = budget.largest(recipe_of(400), store, "cpu", tmp_path)
    assert again.remembered and (again.tokens, len(tried)) == (first.tokens, asked + 2)  # once more, and a little more
    budget.largest(recipe_of(192, width=32), store, "cpu", tmp_path)
    assert len(tried) > asked and len(json.loads((tmp_path / budget.FILE).read_text())) == 2
    (tmp_path / budget.FILE).write_text("{")
    assert not budget.largest(recipe_of(192), store, "cpu", tmp_path).remembered


def test_where_memory_has_come_free_more_is_found(store, tmp_path, monkeypatch):
    for limit in (500, 900):
        monkeypatch.setattr(budget, "_try", lambda recipe, store, device, tokens, limit=limit: 1 if tokens <= limit else None)
        assert limit / budget.CLOSE <= budget.largest(recipe_of(400), store, "cpu", tmp_path).tokens <= limit


LIMITED = """
import json, sys
from pathlib import Path
from turborec import recipes
from turborec.bench import budget
from turborec.data.store import open_store
budget.hardware.free_memory = lambda device: 2**30
print(budget.trial(recipes.from_tree(json.loads(sys.stdin.read()), ""), open_store(Path(sys.argv[1])), "cpu"))
"""


def test_a_trial_runs_out_of_memory_without_taking_anything_along(store):
    """Real processes with a GiB each: one that fits, and one whose optimizer finds no room for what it remembers."""
    assert 50 * 2**20 < budget._try(recipe_of(), store, "cpu", 192) < 4 * 2**30
    for recipe, fits in ((recipe_of(), True), (recipe_of(width=512, hidden=65536), False)):
        command = [sys.executable, "-c", LIMITED, str(store.folder)]
        done = subprocess.run(command, input=recipe.model_dump_json(), capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0 and (done.stdout.strip() != "None") == fits, done.stderr
