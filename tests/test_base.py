"""Runs that begin with the weights of another: whole, or with adapters beside them."""

import json
import shutil

import numpy as np
import pytest
import torch

from stores import item_id, store_of
from turborec import adopt, base, recipes, run
from turborec.assembly import measure
from turborec.engine import checkpoint
from turborec.errors import InterruptedRunError, UserError
from turborec.stores import Places

TREE = {
    "data": {"source": {"kind": "online_retail"}},
    "batches": {"max_length": 12, "tokens": 192},
    "model": {"kind": "bert4rec", "width": 16, "hidden": 32},
    "train": {"epochs": 2},
    "anchors": False,
}
LORA = {"kind": "lora", "rank": 2}
ILORA = {"kind": "ilora", "rank": 4, "experts": 2}


def histories(seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(1, 31, generator.integers(3, 20)).tolist() for _ in range(25)]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return Places(home=folder, store=store_of(folder / "store", histories(), items=30).folder)


@pytest.fixture(scope="module")
def trained(places):
    folder = places.home / "trained"
    run.train(recipe(), folder, places)
    return folder


def recipe(**changes):
    return recipes.from_tree({**TREE, **changes}, "the test")


@pytest.mark.parametrize("adapters", [LORA, ILORA, {"kind": "scalar_gate"}, {**LORA, "frozen": "bfloat16"}])
def test_adapters_are_trained_saved_alone_and_reopened(adapters, trained, places, tmp_path):
    done, results = run.train(recipe(base=str(trained), adapters=adapters), tmp_path / "run", places)
    saved = checkpoint.load_latest(tmp_path / "run" / "checkpoints").tensors
    own = {name for name, p in done.model.named_parameters() if p.requires_grad}
    assert set(saved["model"]) == own | {"base"} and len(own) > 4
    size, whole = (sum(f.stat().st_size for f in folder.rglob("model.safetensors")) for folder in (tmp_path, trained))
    assert size < whole
    again = run.reopen(tmp_path / "run", places)
    assert measure(again, "test").masked == results["bert4rec"].masked
    frozen = base.weights_of(trained).tensors
    kept = {name: tensor.cpu().to(frozen[name].dtype) for name, tensor in again.model.state_dict().items() if name in frozen}
    rtol = 0.01 if "frozen" in adapters else 0.0
    assert kept.keys() == frozen.keys()
    assert all(torch.allclose(kept[name], frozen[name], rtol=rtol, atol=0.0) for name in frozen)
    share = sum(p.numel() for p in done.model.parameters() if p.requires_grad) / sum(p.numel() for p in done.model.parameters())
    assert f"({share:.2%}) of them trained" in (tmp_path / "run" / "log.txt").read_text()


def test_training_goes_on_from_the_weights_of_another_run(trained, places, tmp_path):
    before = measure(run.reopen(trained, places), "validation").values["ndcg@10"]
    slow = {"epochs": 1, "optimizer": {"kind": "adamw", "lr": 1e-9}}
    done, _ = run.train(recipe(base=str(trained), train=slow), tmp_path / "run", places)
    assert measure(done, "validation").values["ndcg@10"] == pytest.approx(before, abs=1e-9)
    assert all(p.requires_grad for p in done.model.parameters())
    weights = base.weights_of(tmp_path / "run").tensors  # whole, so that it may be a base itself
    assert weights.keys() == base.weights_of(trained).tensors.keys()


def test_adapters_resume_exactly(trained, places, tmp_path, monkeypatch):
    asked = recipe(base=str(trained), adapters=ILORA, train={"epochs": 3, "average": 0.9})
    run.train(asked, tmp_path / "whole", places)

    def stop(number, step, command):
        raise InterruptedRunError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr("turborec.training.heed", stop)
        with pytest.raises(InterruptedRunError):
            run.train(asked, tmp_path / "part", places)
    run.train(asked, tmp_path / "part", places)
    whole, parted = (checkpoint.load_latest(tmp_path / name / "checkpoints") for name in ("whole", "part"))
    assert whole.state == parted.state and set(whole.tensors) == {"model", "optimizer", "random", "average"}
    for group, tensors in whole.tensors.items():
        assert all(torch.equal(tensor, parted.tensors[group][name]) for name, tensor in tensors.items())
    assert set(whole.tensors["average"]) == set(whole.tensors["model"]) - {"base"}


def test_adapters_go_with_the_weights_that_they_were_trained_on_alone(trained, places, tmp_path):
    run.train(recipe(), tmp_path / "first", places)
    run.train(recipe(base=str(tmp_path / "first"), adapters=LORA), tmp_path / "run", places)
    (tmp_path / "first").rename(tmp_path / "kept")
    run.train(recipe(seed=2), tmp_path / "first", places)
    with pytest.raises(UserError, match="trained beside other weights than those of `base`"):
        run.reopen(tmp_path / "run", places)


def test_items_are_matched_by_their_raw_ids(trained, places, tmp_path):
    """In a store without every third item, and with one that the base does not know."""
    left = [number for number in range(1, 31) if number % 3]
    names = [item_id(number) for number in left] + ["new"]
    place = {number: at for at, number in enumerate(left, start=1)}
    events = [[place[item] for item in history if item in place] + [len(names)] for history in histories()]
    other = Places(tmp_path, store=store_of(tmp_path / "store", events, items=len(names), names=names).folder)
    slow = {"epochs": 1, "optimizer": {"kind": "adamw", "lr": 1e-12}}
    done, _ = run.train(recipe(base=str(trained), train=slow), tmp_path / "run", other)
    before, rows = run.reopen(trained, places).model, torch.tensor(left)
    for name in ("items.weight", "bias"):
        old, new = before.state_dict()[name], done.model.state_dict()[name]
        assert torch.allclose(new[0], old[0], atol=1e-6)
        assert torch.allclose(new[1 : len(left) + 1], old[rows], atol=1e-6)
        assert torch.allclose(new[-1], old[1:].mean(0), atol=1e-6)


def test_a_merged_run_is_whole_and_as_good(trained, places, tmp_path):
    _, results = run.train(recipe(base=str(trained), adapters={**LORA, "frozen": "bfloat16"}), tmp_path / "run", places)
    merged, found = adopt.merge(tmp_path / "run", tmp_path / "merged", places)
    assert merged.recipe.adapters is None and merged.recipe.base is None
    assert found["bert4rec"].values["ndcg@10"] == pytest.approx(results["bert4rec"].values["ndcg@10"], abs=0.02)
    run.train(recipe(base=str(tmp_path / "merged"), adapters=LORA), tmp_path / "again", places)
    assert json.loads((tmp_path / "merged" / "merged.json").read_text())["base"] == str(trained)
    with pytest.raises(UserError, match="has no adapters"):
        adopt.merge(tmp_path / "merged", tmp_path / "twice", places)


def test_a_mended_recipe_may_have_the_folder_of_one_that_never_began(trained, places, tmp_path):
    with pytest.raises(UserError, match="matches no projection"):
        run.train(recipe(base=str(trained), adapters={**LORA, "targets": ["nothing"]}), tmp_path / "run", places)
    run.train(recipe(base=str(trained), adapters=LORA), tmp_path / "run", places)
    assert run.is_finished(tmp_path / "run")
    with pytest.raises(UserError, match="holds a run of another recipe"):
        run.train(recipe(base=str(trained), adapters={**LORA, "rank": 3}), tmp_path / "run", places)


def test_a_base_is_found_from_anywhere(trained, places, tmp_path, monkeypatch):
    monkeypatch.chdir(trained.parent)
    run.train(recipe(base=trained.name, adapters=LORA), tmp_path / "run", places)
    monkeypatch.chdir(tmp_path)
    assert run.recipe_of(tmp_path / "run").base == str(trained)
    measure(run.reopen(tmp_path / "run", places), "test")


def test_another_run_s_vectors_may_open_the_gate(trained, places, tmp_path):
    other = {"kind": "sasrec", "width": 8, "hidden": 16}
    run.train(recipe(model=other), tmp_path / "sasrec", places)
    adapters = {**ILORA, "gate": str(tmp_path / "sasrec")}
    _, results = run.train(recipe(base=str(trained), adapters=adapters), tmp_path / "run", places)
    again = run.reopen(tmp_path / "run", places)
    assert measure(again, "test").masked == results["bert4rec"].masked
    assert again.model.gate.router.weight.shape == (2, 8) and not again.model.replays
    (tmp_path / "sasrec").rename(tmp_path / "as it was")
    run.train(recipe(model=other, seed=9), tmp_path / "sasrec", places)
    with pytest.raises(UserError, match="or of the run that their gate looks at, as they are now"):
        measure(run.reopen(tmp_path / "run", places), "test")


def test_a_gate_that_knows_users_from_all_that_they_did_is_refused(trained, places, tmp_path):
    run.train(recipe(model={"kind": "bpr", "width": 8}), tmp_path / "bpr", places)
    with pytest.raises(UserError, match="a run of bpr, whose vector of a user is learnt from all"):
        run.train(recipe(base=str(trained), adapters={**ILORA, "gate": str(tmp_path / "bpr")}), tmp_path / "run", places)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"adapters": LORA}, "adapters are added to what was learnt before: name the folder of another run, base=RUN"),
        ({"base": "nowhere"}, "base: .*nowhere is not a run folder"),
        ({"base": "TRAINED", "model": {**TREE["model"], "tied": False}}, "output.weight are not in both"),
        ({"base": "TRAINED", "model": {**TREE["model"], "width": 32}}, r"has the shape \[16\] in .* and \[32\] here"),
        (
            {"base": "TRAINED", "adapters": {**LORA, "targets": ["blocks.*.attention.qq"]}},
            r"'blocks\.\*\.attention\.qq' matches no projection",
        ),
        ({"base": "TRAINED", "adapters": LORA, "model": {"kind": "markov"}}, "markov is counted, not trained"),
        ({"base": "TRAINED", "adapters": ILORA, "model": {"kind": "sasrec"}}, "are not in both"),
    ],
)
def test_what_cannot_work_is_refused_before_a_step(changes, told, trained, places, tmp_path):
    if changes.get("base") == "TRAINED":
        changes = {**changes, "base": str(trained)}
    with pytest.raises(UserError, match=told):
        run.train(recipe(**changes), tmp_path / "run", places)


def test_a_run_whose_best_weights_may_still_change_is_no_base(trained, places, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "base")
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "state": "interrupted"}))
    with pytest.raises(UserError, match=r"base: the run in .* is interrupted, and its best weights may still change"):
        run.train(recipe(base=str(folder), adapters=LORA), tmp_path / "run", places)


def test_a_gate_of_the_whole_history_is_refused_where_it_would_tell_what_follows(places, tmp_path):
    model = {"kind": "sasrec", "width": 8, "hidden": 16}
    run.train(recipe(model=model), tmp_path / "sasrec", places)
    with pytest.raises(UserError, match="a gate made of the whole history would tell it what follows"):
        run.train(recipe(model=model, base=str(tmp_path / "sasrec"), adapters=ILORA), tmp_path / "run", places)
