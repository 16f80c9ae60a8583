"""How the rate of training grows with processes; with real processes."""

import subprocess
import sys

import numpy as np
import pytest

from stores import store_of
from turborec import recipes
from turborec.bench import scaling
from turborec.errors import UserError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    generator = np.random.default_rng(0)
    histories = [generator.integers(1, 61, generator.integers(4, 40)).tolist() for _ in range(50)]
    return store_of(tmp_path_factory.mktemp("scaling") / "store", histories, items=60)


def recipe_of(tokens=192):
    model = {"kind": "sasrec", "width": 16, "hidden": 32}
    tree = {"data": {"source": {"kind": "online_retail"}}, "batches": {"max_length": 12, "tokens": tokens}, "model": model}
    return recipes.from_tree(tree, "the test")


@pytest.mark.timeout(200)
def test_one_and_two_processes_are_measured_on_the_same_work(store):
    found = scaling.measure(recipe_of(), store, [1, 2], rounds=1, seconds=0.3, device="cpu")
    alone, strong, _, apart = found["rows"]
    assert apart["communication_share"] == 0 and apart["exchanged_mib"] == 0
    assert [(row["processes"], row["mode"], row["tokens"]) for row in found["rows"]] == [
        (1, "strong", 192),
        (2, "strong", 192),
        (2, "weak", 384),
        (2, "apart", 192),
    ]
    for row in found["rows"]:
        sample = row["samples"][0]
        assert row["targets_per_second"]["value"] == pytest.approx(sample["targets"] / sample["seconds"])
        assert sample["steps"] > 3 and sample["cpu_seconds"] > 0
    assert alone["communication_share"] == 0 < strong["communication_share"]
    weights = sum(parameter.nbytes for parameter in scaling.assemble(recipe_of(), store).model.parameters())
    assert strong["exchanged_mib"] == pytest.approx(weights / 2**20)
    assert {one["processes"] for one in found["predicted"]} == {2, 4, 8}


def test_a_prediction_is_a_ring_of_messages():
    free = scaling.predicted(0.01, 10**8, 4, float("inf"), 0.0)
    assert free == 4
    assert scaling.predicted(0.01, 10**8, 4, 10.0, 1e-5) == pytest.approx(4 * 0.01 / (0.01 + 1.5 * 0.01 + 6e-5))


def test_what_cannot_be_compared_is_refused(store):
    with pytest.raises(UserError, match="must begin with 1"):
        scaling.measure(recipe_of(), store, [2, 4], 1, 0.1, "cpu")
    command = [sys.executable, "-m", "turborec", "bench", "online-retail/sasrec", "--store", str(store.folder)]
    for words, told in ((("--processes", "1,two"), "whole numbers"), (("--processes", "1,2", "--levers", "bf16"), "leave out")):
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 2 and told in done.stderr
