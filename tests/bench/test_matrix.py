import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stores import store_of
from turborec import recipes
from turborec.assembly import assemble, without_data
from turborec.bench import configurations, eager, flops, levers, matrix, profile
from turborec.bench.evidence import observe
from turborec.data.loader import TrainingBatches
from turborec.engine import hardware
from turborec.errors import UserError
from turborec.models import lightgcn

TREE = {"data": {"source": {"kind": "online_retail"}}, "batches": {"max_length": 12, "tokens": 192}}
TREE["train"] = {"precision": "float32"}  # the same on every processor
MODELS = {
    "sasrec": {"kind": "sasrec", "width": 16, "hidden": 32},
    "bert4rec": {"kind": "bert4rec", "width": 16, "hidden": 32},
    "gru4rec": {"kind": "gru4rec", "width": 16, "hidden": 32},
}


def recipe_of(kind, **others):
    return recipes.from_tree(TREE | {"model": MODELS[kind]} | others, "the test")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    generator = np.random.default_rng(0)
    histories = [generator.integers(1, 301, generator.integers(3, 20)).tolist() for _ in range(80)]
    return store_of(tmp_path_factory.mktemp("bench") / "store", histories, items=300)


@pytest.fixture(scope="module")
def even_store(tmp_path_factory):
    """All histories show twelve events: no padding."""
    generator = np.random.default_rng(0)
    histories = [generator.integers(1, 301, 15).tolist() for _ in range(64)]
    return store_of(tmp_path_factory.mktemp("even") / "store", histories, items=300)


@pytest.mark.parametrize("kind", ["sasrec", "bert4rec"])
def test_useful_work_is_what_runs_where_nothing_is_padded(even_store, kind):
    recipe = recipe_of(kind)
    epoch = TrainingBatches(even_store, recipe.batches, recipe.seed).epoch(0)
    rows = epoch.rows.lengths[epoch.order[0]]
    seen = observe(matrix.contestant("recipe", recipe, even_store, "cpu"))
    useful = flops.useful(recipe.model, 300, np.full(seen.work.events // 12, 12), seen.work.targets)
    assert set(rows.tolist()) == {12}
    # What runs beyond it: causal attention's other half, and rows with fewer masks than the fullest of their batch.
    assert 0.75 * seen.flops < useful <= 1.001 * seen.flops


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_plain_pytorch_trains_on_the_recipes_targets(store, kind):
    recipe = recipe_of(kind)
    epoch = TrainingBatches(store, recipe.batches, recipe.seed).epoch(0)
    data = eager.Rows(store, epoch.rows, 12)
    if kind != "bert4rec":
        assert sum(int((targets > 0).sum()) for _, targets in data) == epoch.targets
    batch = epoch.batch(0)
    for row, user in enumerate(epoch.order[0]):
        events, targets = data[int(user)]
        assert torch.equal(events[: batch.items.shape[1]], batch.items[row])
        assert torch.equal(targets[: batch.items.shape[1]], batch.targets[row])
    works = eager.training(assemble(recipe, store), 16, "targets")
    assert all(next(works).targets > 0 for _ in range(7))


@pytest.mark.parametrize("kind", sorted(MODELS))
@pytest.mark.parametrize("others", [{}, {"head": False, "embedding_norm": False}, {"tied": False}])
def test_plain_pytorch_has_the_recipes_layers(store, kind, others):
    """As many parameters as the model: what differs is the mask's own vector, and the position that SASRec has no use for."""
    others = others if kind == "bert4rec" else {}
    recipe = recipe_of(kind, model=MODELS[kind] | others)
    ours = sum(p.numel() for p in assemble(recipe, store).model.parameters())
    length = 12 + (kind == "bert4rec")
    plain = sum(p.numel() for name, p in eager.Network(recipe.model, 300, length).named_parameters() if name != "mask")
    assert plain == ours


def test_plain_pytorch_learns(even_store):
    """Its loss falls on a store it can learn by heart, with logits everywhere and at targets alike."""
    recipe = recipe_of("sasrec", train={"epochs": 1, "optimizer": {"kind": "adamw", "lr": 1e-2}})
    for logits in ("all", "targets"):
        losses = []

        def remembered(*arguments, into=losses, original=F.cross_entropy, **named):
            into.append(original(*arguments, **named))
            return into[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(eager.F, "cross_entropy", remembered)
            works = eager.training(assemble(recipe, even_store), 16, logits)
            for _ in range(60):
                next(works)
        assert float(losses[-1].detach()) < 0.9 * float(losses[0].detach())


def test_a_lever_is_believed_only_where_it_shows(store, monkeypatch):
    plan = matrix.Plan(("bucketing", "bf16", "sampled"), ("eager",), rounds=2, seconds=0.01, memory=False)
    found = matrix.run(recipe_of("sasrec"), store, plan, "cpu")
    assert {row["name"] for row in found["rows"]} >= {"recipe", "without bucketing", "with bf16", "with sampled", "eager"}
    assert {one["name"]: one["failed"] for one in found["levers"]} == {"bucketing": None, "bf16": None, "sampled": None}
    assert "bfloat16" in next(one["proof"] for one in found["levers"] if one["name"] == "bf16")
    bucketing, bf16, sampled = (
        next(one for one in found["levers"] if one["name"] == n) for n in ("bucketing", "bf16", "sampled")
    )
    assert bucketing["kept"] and bf16["kept"] and sampled["kept"] is None
    # A lever whose change does nothing fails, and has no gain.
    monkeypatch.setattr("turborec.assembly.compile_parts", lambda model, stage: None)
    off = matrix.run(recipe_of("sasrec"), store, matrix.Plan(("compile",), (), 2, 0.01, False), "cpu")["levers"][0]
    assert off["failed"] == "nothing shows that it was on" and off["gain"] is None


def test_levers_of_a_study_show_that_they_are_on(store):
    names = ("recompute", "masked", "focal", "clip", "cosine")
    recipe = recipe_of("bert4rec", train={"precision": "float32", "optimizer": {"kind": "adamw", "lr": 0.02}})
    found = matrix.run(recipe, store, matrix.Plan(names, (), rounds=1, seconds=0, memory=False), "cpu")["levers"]
    assert {one["name"]: one["failed"] for one in found} == dict.fromkeys(names)
    assert found[0]["kept"] and {one["kept"] for one in found[1:]} == {None}


def test_precision_auto_is_the_type_it_comes_to(store):
    names = matrix._variants(recipe_of("sasrec"), store, [levers.lever("bf16")], (), torch.device("cpu"))
    assert len(names) == 2


def test_what_cannot_be_measured_is_refused(store):
    with pytest.raises(UserError, match="did you mean 'bf16'"):
        levers.lever("bf-16")
    with pytest.raises(UserError, match="no opponent 'eagre'"):
        matrix.opponents("eagre")
    with pytest.raises(UserError, match="counted, not trained"):
        matrix.contestant(
            "recipe",
            recipes.from_tree({"data": {"source": {"kind": "online_retail"}}, "model": {"kind": "markov"}}, "t"),
            store,
            "cpu",
        )


def test_the_module_measures_with_the_training_floor_alone(store, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        json.dumps(
            {
                "data": {"source": {"kind": "online_retail"}},
                "batches": {"max_length": 12, "tokens": 192},
                "model": MODELS["sasrec"],
            }
        )
    )
    command = ["-m", "turborec.bench", tmp_path / "recipe.yaml", "--store", store.folder, "--rounds", "1", "--seconds", "0"]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)["rows"][0]
    assert row["name"] == "recipe" and 50 < row["peak_mib"] < 4000


def test_a_profile_names_the_parts_of_a_step(store, tmp_path):
    found = profile.take(assemble(recipe_of("sasrec"), store), steps=3, trace=tmp_path / "trace.json")
    parts = found.parts
    assert all(parts[name] > 0 for name in ("data", "forward", "head", "backward", "clip", "optimizer"))
    assert parts["communication"] == 0 and sum(parts.values()) < 1.01
    assert found.operations[0].milliseconds >= found.operations[1].milliseconds
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    memory = found.memory
    assert len(memory.mib) == len(memory.milliseconds) <= profile.MOST_POINTS and max(memory.mib) > 0
    assert max(memory.highest.values()) == pytest.approx(max(memory.mib)) and memory.highest["forward"] > 0
    assert list(memory.milliseconds) == sorted(memory.milliseconds)
    assert hardware.busy() is None or "busy" in hardware.busy()


def test_levers_are_those_that_a_recipe_has():
    pairs = recipe_of("sasrec").model_copy(update={"model": lightgcn.Config()})
    assert {"bucketing", "bf16", "sampled"} <= {*matrix.named("all", recipe_of("sasrec"))}
    assert {*matrix.named("all", pairs)} >= {"bf16", "whole_model"} and not {"bucketing", "sampled", "recompute", "masked"} & {
        *matrix.named("all", pairs)
    }
    assert "bucketing is one of batches of histories" in levers.why_not(levers.lever("bucketing"), pairs, torch.device("cpu"))
    assert "sampled is none of this recipe's" in levers.why_not(levers.lever("sampled"), pairs, torch.device("cpu"))


def test_a_model_whose_size_is_known_with_its_data_is_measured(tmp_path, monkeypatch):
    pytest.importorskip("tokenizers", reason="text: tokenizers is not installed")
    generator = np.random.default_rng(0)
    histories = [generator.integers(1, 31, generator.integers(3, 12)).tolist() for _ in range(40)]
    told = {"title": [f"item {number}" for number in range(1, 31)]}
    store = store_of(tmp_path / "store", histories, items=30, told=told)
    recipe = recipes.from_tree(
        TREE | {"model": {"kind": "recformer", "width": 16, "hidden": 32, "texts": {"vocabulary": 300}}}, "the test"
    )
    monkeypatch.setattr(configurations, "EIGHT", configurations.EIGHT[:1])  # nothing is compiled
    plan = matrix.Plan(("clip",), rounds=1, seconds=0, memory=False, eight=True)
    found = matrix.run(recipe, store, plan, "cpu")
    assert found["rows"][0]["parameters"] is None and found["rows"][0]["step_ms"] > 0
    assert {one["name"]: one["failed"] for one in found["configurations"]}["none"] is None
    with pytest.raises(UserError, match="its parameters are known with its data"):
        without_data(recipe, 30)
    assert "recompute" not in matrix.named("all", recipe)
