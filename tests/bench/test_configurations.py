"""The eight configurations of a study: each is what it is called, or says why it is not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stores import store_of
from turborec import recipes
from turborec.bench import configurations, matrix
from turborec.bench.evidence import Evidence
from turborec.bench.step import Work


@pytest.fixture
def store(tmp_path):
    generator = np.random.default_rng(0)
    return store_of(tmp_path / "store", [generator.integers(1, 31, generator.integers(3, 20)).tolist() for _ in range(40)], 30)


def recipe_of(kind, **model):
    tree = {"data": {"source": {"kind": "online_retail"}}, "batches": {"max_length": 12, "tokens": 192}}
    return recipes.from_tree(tree | {"model": {"kind": kind, "width": 16, **model}}, "the test")


def test_what_this_machine_can_do_is_measured_and_proven(store, monkeypatch):
    some = [one for one in configurations.EIGHT if not one.compiled or one.replayed]
    monkeypatch.setattr(configurations, "EIGHT", tuple(some))
    found = matrix.run(recipe_of("bert4rec"), store, matrix.Plan(rounds=1, seconds=0.01, memory=False, eight=True), "cpu")
    failed = {one["name"]: one["failed"] for one in found["configurations"]}
    lowered = [name for name, why in failed.items() if why and "no reduced precision" in why]
    assert set(failed) == {one.name for one in some}
    assert failed["none"] is failed["ilora"] is None and "CUDA devices alone" in failed[some[-1].name]
    rows = {row["name"]: row for row in found["rows"]}
    assert rows.keys() == {"recipe", *failed} - {some[-1].name} - set(lowered)
    assert (
        rows["none"]["main_type"] == "float32" and rows["none"]["parameters"]["trained"] == rows["none"]["parameters"]["total"]
    )
    assert rows["ilora"]["parameters"]["trained"] < 0.5 * rows["ilora"]["parameters"]["total"]


@pytest.mark.parametrize(
    ("name", "seen", "trained", "told"),
    [
        ("none", {"products": {"float32": 9}}, 1.0, None),
        ("amp", {"products": {"float32": 9}}, 1.0, "most of its products ran in float32"),
        ("none", {"products": {"bfloat16": 9}}, 1.0, "most of its products ran in bfloat16"),
        ("compile", {}, 1.0, "0 calls of compiled code"),
        ("ilora", {"products": {"float32": 9}}, 1.0, "100.0% of the parameters were trained"),
        ("ilora + amp + compile, reduced overhead", {"regions": 2}, 0.1, "nothing was replayed"),
    ],
)
def test_what_was_not_on_is_told(name, seen, trained, told):
    one = next(each for each in configurations.EIGHT if each.name == name)
    evidence = Evidence(Work(1, 1, 1, 1))
    evidence.products.update(seen.get("products", {}))
    found = one.shown(replace(evidence, regions=seen.get("regions", 0)), trained)
    assert (found is None) if told is None else told in found


def test_other_models_have_no_adapters_of_instances():
    possible, unfit = configurations.possible(recipe_of("sasrec"), torch.device("cpu"))
    assert "none" in possible and "only bert4rec" in unfit["ilora"]
