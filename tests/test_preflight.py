import json

import numpy as np
import pytest
import torch

from stores import store_of
from turborec import preflight, recipes
from turborec.assembly import assemble
from turborec.data.schema import UNKNOWN_TIME
from turborec.engine import checkpoint
from turborec.errors import UserError

TREE = {
    "data": {"source": {"kind": "online_retail"}},
    "batches": {"max_length": 12, "tokens": 192},
    "model": {"kind": "sasrec", "width": 16, "hidden": 32},
}


def assembly_of(folder, times=None, split=None, model=None):
    generator = np.random.default_rng(0)
    histories = [generator.integers(1, 31, 8).tolist() for _ in range(25)]
    store = store_of(folder / "store", histories, items=30, times=times and [times(u) for u in range(25)])
    store.card["split"] = {"kind": split or "leave_one_out"}
    return assemble(recipes.from_tree({**TREE, "model": model or TREE["model"]}, "the test"), store)


def named(assembly, folder):
    return {check.name: check for check in preflight.checks(assembly, folder / "run" / "checkpoints")}


def test_a_sound_run_passes_and_nothing_is_changed(tmp_path):
    assembly = assembly_of(tmp_path, lambda u: [100 * u + k for k in range(8)])
    before = {name: tensor.clone() for name, tensor in assembly.model.state_dict().items()}
    drawn = torch.get_rng_state()
    found = named(assembly, tmp_path)
    assert set(found) == {"data", "split", "times", "kernels", "gradients", "checkpoint"}
    assert all(check.state != "problem" for check in found.values())
    assert found["times"].state == "ok" and found["checkpoint"].state == "ok" and found["gradients"].state == "ok"
    assert all(torch.equal(tensor, before[name]) for name, tensor in assembly.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(p.grad is None for p in assembly.model.parameters())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store"]


def test_the_first_loss_is_the_mean_of_what_the_model_predicts(tmp_path):
    """Of a masked model that is fewer events than there are targets; it begins as if all items were alike."""
    model = {"kind": "bert4rec", "width": 16, "hidden": 32, "dropout": 0.0, "mask_share": 0.2}
    found = named(assembly_of(tmp_path, model=model), tmp_path)["gradients"]
    assert found.values["loss"] == pytest.approx(np.log(30), abs=0.3)


def test_times_that_mean_little_are_told(tmp_path):
    times = named(assembly_of(tmp_path, lambda u: [UNKNOWN_TIME, 5, 5, 4, 10, 20, 30, 4_102_444_800]), tmp_path)["times"]
    assert times.state == "note"
    for told in (
        "25 (12.5%) are unknown",
        "25 (12.5%) are those of the event before",
        "25 (12.5%) go back",
        "lie in the future",
    ):
        assert told in times.says


def test_a_store_without_times_is_told(tmp_path):
    assert "none are known" in named(assembly_of(tmp_path), tmp_path)["times"].says


def test_training_on_what_came_later_is_told(tmp_path):
    split = named(assembly_of(tmp_path, lambda u: [1000 * u + k for k in range(8)]), tmp_path)["split"]
    assert split.state == "note" and "48% of the training events" in split.says  # of 12 of 25 users


def test_a_split_by_time_that_leaks_is_refused(tmp_path):
    assembly = assembly_of(tmp_path, lambda u: [1000 * u + k for k in range(8)], split="global_time")
    found = preflight.checks(assembly, tmp_path)
    with pytest.raises(UserError, match=r"does not begin\. split: events before the validation part are later"):
        preflight.require(found)


def test_a_cold_split_that_leaks_is_refused(tmp_path):
    assert named(assembly_of(tmp_path, split="item_holdout"), tmp_path)["split"].state == "problem"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_that_are_no_numbers_are_refused(value, tmp_path):
    assembly = assembly_of(tmp_path)
    with torch.no_grad():
        next(assembly.model.parameters())[3] = value
    gradients = named(assembly, tmp_path)["gradients"]
    assert gradients.state == "problem" and "not finite" in gradients.says


def test_a_gradient_alone_that_is_no_number_is_refused_by_name(tmp_path, monkeypatch):
    assembly = assembly_of(tmp_path)
    name, parameter = next(iter(assembly.model.named_parameters()))
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    gradients = named(assembly, tmp_path)["gradients"]
    assert gradients.state == "problem" and name in gradients.says


def test_a_disk_that_gives_back_other_bits_is_found(tmp_path, monkeypatch):
    load = checkpoint.load

    def flipped(path):
        found = load(path)
        next(iter(found.tensors["model"].values())).view(torch.int32).flatten()[0] ^= 1
        return found

    monkeypatch.setattr(preflight.checkpoint, "load", flipped)
    assert "not what was written" in named(assembly_of(tmp_path), tmp_path)["checkpoint"].says


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.complex64])
def test_bits_are_compared_not_values(kind):
    some, other = (torch.tensor(values).to(kind) for values in ([0, 1, 1], [0, 1, 0]))
    assert preflight._same(some, some.clone()) and not preflight._same(some, other)
    assert preflight._same(some[0], some[0].clone()) and not preflight._same(some, some[:2])


def test_numbers_of_equal_value_have_other_bits():
    nothing = torch.tensor([float("nan"), 0.0])
    assert preflight._same(nothing, nothing.clone()) and not preflight._same(nothing, torch.tensor([float("nan"), -0.0]))


def test_a_folder_that_cannot_be_written_is_found(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert preflight._checkpoint(assembly_of(tmp_path), file).state == "problem"


def test_versions_beyond_those_tested_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "TESTED", {"torch": ("1.0", "1.1")})
    kernels = named(assembly_of(tmp_path), tmp_path)["kernels"]
    assert kernels.state == "note" and "made for 1.0 to 1.1" in kernels.says


def test_a_counted_model_has_no_gradients(tmp_path):
    assert "gradients" not in named(assembly_of(tmp_path, model={"kind": "markov"}), tmp_path)


def test_what_was_found_is_plain_json(tmp_path):
    found = preflight.checks(assembly_of(tmp_path), tmp_path)
    assert json.loads(json.dumps([vars(check) for check in found]))[0]["name"] == "data"
