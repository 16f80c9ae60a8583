"""RecFormer pre-trained here, and fine-tuned from that run: its encoder, its tokenizer, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stores import store_of
from turborec import baseline, recipes, run
from turborec.engine import checkpoint
from turborec.errors import UserError
from turborec.features.pretrained import found_in
from turborec.nn.lora import Adapter
from turborec.report.run_page import run_page
from turborec.stores import Places

pytest.importorskip("tokenizers", reason="text: tokenizers is not installed")

ENCODER = {"kind": "recformer", "width": 16, "layers": 2, "heads": 2, "hidden": 32, "max_tokens": 64}
TREE = {
    "data": {"source": {"kind": "online_retail"}},  # of which the store stands in place
    "batches": {"max_length": 6, "tokens": 96, "coverage": "drawn_late"},
    "model": ENCODER | {"items": "in_batch", "masked_words": {}, "texts": {"vocabulary": 300}},
    "train": {"epochs": 3, "optimizer": {"lr": 5e-3}},
}


def places_of(folder, alphabet):
    """Users walk on along the items; each item's words say where it stands."""
    histories = [[(user + step) % 30 + 1 for step in range(8)] for user in range(40)]
    told = {"title": [" ".join(alphabet[int(digit)] * 3 for digit in np.base_repr(number, 6)) for number in range(1, 31)]}
    return Places(home=folder, store=store_of(folder / "store", histories, items=30, told=told).folder)


def trained(places, folder, **changes):
    return run.train(recipes.from_tree(TREE | changes, "the test"), folder, places)


@pytest.fixture(scope="module")
def pre_trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pre_training")
    _, results = trained(places_of(folder, "abcdef"), folder / "run")
    return folder / "run", results["recformer"]


def test_all_losses_are_logged_and_fall(pre_trained):
    records = [json.loads(line) for line in (pre_trained[0] / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "train"]
    for name in ("next_item", "history_words", "item_words"):
        values = [step[name] for step in steps]
        assert np.mean(values[-3:]) < np.mean(values[:3])
    total = steps[0]["next_item"] + 0.1 * (steps[0]["history_words"] + steps[0]["item_words"])
    assert steps[0]["loss"] == pytest.approx(total, rel=1e-5)


def test_fine_tuning_begins_where_pre_training_ended(pre_trained, tmp_path):
    folder, results = pre_trained
    model = ENCODER | {"pretrained": str(folder), "texts": {"tokenizer": str(folder)}}
    tuned, _ = trained(places_of(tmp_path, "abcdef"), tmp_path / "run", model=model, train={"epochs": 1})
    before = json.loads((tmp_path / "run" / "evaluation" / "test" / "before-training" / "result.json").read_text())["values"]
    assert before["masked"] == pytest.approx(results.masked, abs=1e-6)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["preparing_seconds"] > 0 for record in records if record["kind"] == "clock"] == [True]
    written = run_page(tmp_path / "run")
    assert "Before and after training" in written and f">{before['masked']['mrr']:.4f}<" in written
    assert not any(name.startswith("word_head") for name in tuned.model.state_dict())
    assert (tmp_path / "run" / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()


def test_other_words_and_unfinished_runs_are_refused(pre_trained, tmp_path):
    folder, _ = pre_trained
    model = ENCODER | {"pretrained": str(folder), "texts": {"vocabulary": 300}}
    with pytest.raises(UserError, match="was trained with the words of"):
        trained(places_of(tmp_path, "uvwxyz"), tmp_path / "run", model=model)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "recipe.yaml").write_text("")
    with pytest.raises(UserError, match="has no validated weights"):
        trained(
            Places(tmp_path, None, tmp_path / "store"),
            tmp_path / "other",
            model=model | {"pretrained": str(tmp_path / "empty")},
        )
    with pytest.raises(UserError, match=r"there is no .*gone"):
        found_in(str(tmp_path / "gone"))
    with pytest.raises(UserError, match="has no encoder of texts to give"):
        (tmp_path / "other_model").mkdir()
        (tmp_path / "other_model" / "recipe.yaml").write_text("")
        checkpoint.save(tmp_path / "other_model" / "checkpoints", 3, {"model": {"a": torch.ones(1)}}, {"best_step": 3})
        found_in(str(tmp_path / "other_model"))
    longer = model | {"texts": {"tokenizer": str(folder)}}
    with pytest.raises(UserError, match="its max_length 6"):
        trained(Places(tmp_path, None, tmp_path / "store"), tmp_path / "long", model=longer, batches={"max_length": 9})
    wider = model | {"width": 32, "texts": {"tokenizer": str(folder)}}
    with pytest.raises(UserError, match="has the shape"):
        trained(Places(tmp_path, None, tmp_path / "store"), tmp_path / "wide", model=wider)


def test_items_are_encoded_once_by_the_same_weights_and_those_alone_that_are_new(pre_trained, tmp_path, caplog):
    folder, _ = pre_trained
    given = {"pretrained": str(folder), "texts": {"tokenizer": str(folder)}}

    def told(name, alphabet, **changes):
        caplog.clear()
        store = tmp_path / "stores" / alphabet  # beside which things are kept
        if not store.exists():
            store.parent.mkdir(exist_ok=True)
            places_of(tmp_path / alphabet, alphabet).store.rename(store)
        trained(Places(tmp_path, None, store), tmp_path / name, model=ENCODER | given | changes, train={"epochs": 2})
        return [text.split(" texts")[0] for text in caplog.messages if "were encoded by these weights" in text]

    assert told("first", "abcdef") == ["0 of 30", "30 of 30", "30 of 30"]  # the preflight's, the baseline's, the first epoch's
    assert told("second", "abcdef", dropout=0.3) == ["30 of 30"] * 3
    assert told("third", "abcdeg") == ["24 of 30", "30 of 30", "30 of 30"]


@pytest.mark.parametrize("kind", ["lora", "ilora"])
def test_adapters_beside_a_pretrained_encoder(pre_trained, tmp_path, kind):
    folder, results = pre_trained
    model = ENCODER | {"pretrained": str(folder), "texts": {"tokenizer": str(folder)}}
    places = places_of(tmp_path, "abcdef")
    train = {"epochs": 2, "optimizer": {"lr": 1e-2}}
    done, tested = trained(places, tmp_path / "run", model=model, train=train, adapters={"kind": kind, "rank": 4})
    before = json.loads((tmp_path / "run" / "evaluation" / "test" / "before-training" / "result.json").read_text())["values"]
    assert before["masked"] == pytest.approx(results.masked, abs=1e-6)
    assert tested["recformer"].masked != before["masked"]
    changed = [one.b for one in done.model.modules() if isinstance(one, Adapter)]
    assert changed and all(b.any() for b in changed)
    weights = load_file(next((tmp_path / "run" / "checkpoints").glob("step_*")) / "model.safetensors")
    assert not any(name.endswith("words.weight") for name in weights)
    opened = run.reopen(tmp_path / "run", places)
    again = run.evaluate(opened, "test")
    assert again["recformer"].masked == tested["recformer"].masked
    if kind == "ilora":  # each text has gates of its own, whatever else is in its batch
        items = torch.arange(1, 31)
        together = opened.model.encoded_of(items)
        alone = torch.cat([opened.model.encoded_of(items[place : place + 1]) for place in range(30)])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_a_run_keeps_its_words_where_the_other_run_has_gone(pre_trained, tmp_path, monkeypatch):
    shutil.copytree(pre_trained[0], tmp_path / "parent")
    monkeypatch.chdir(tmp_path)
    model = ENCODER | {"pretrained": "parent", "texts": {"tokenizer": "parent"}}
    places = places_of(tmp_path, "abcdef")
    done, tested = trained(places, tmp_path / "run", model=model, train={"epochs": 1})
    assert done.recipe.model.texts.tokenizer == done.recipe.model.pretrained == str(tmp_path / "parent")
    (tmp_path / "parent").rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    again = run.evaluate(run.reopen(tmp_path / "run", places), "test")
    assert again["recformer"].masked == tested["recformer"].masked


def test_weights_of_an_interrupted_run_are_told_of_and_a_training_that_makes_them_worse(pre_trained, tmp_path, caplog):
    shutil.copytree(pre_trained[0], tmp_path / "parent")
    status = tmp_path / "parent" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"state": "interrupted"}))
    model = ENCODER | {"pretrained": str(tmp_path / "parent"), "texts": {"tokenizer": str(tmp_path / "parent")}}
    trained(places_of(tmp_path, "abcdef"), tmp_path / "run", model=model, train={"epochs": 1, "optimizer": {"lr": 0.5}})
    assert "is interrupted: these are the weights" in caplog.text
    assert "Training made of the given weights worse ones (ndcg@10" in caplog.text


@pytest.mark.parametrize("adapters", [None, {"kind": "lora", "rank": 4}])
def test_a_base_gives_no_vectors_of_items(tmp_path, adapters):
    """Of a base on other items in another order: each item is encoded anew, before the first epoch."""
    words = {"tokenizer": str(tmp_path / "first" / "run")}
    first = places_of(tmp_path / "first", "abcdef")
    trained(first, tmp_path / "first" / "run", model=ENCODER | {"texts": {"vocabulary": 300}}, train={"epochs": 1})
    told = {"title": [" ".join("abcdef"[int(digit)] * 3 for digit in np.base_repr(number, 6)) for number in range(2, 31)]}
    histories = [[(user + step) % 29 + 1 for step in range(8)] for user in range(40)]
    names = [f"item-{number:06d}" for number in range(2, 31)]
    store = store_of(tmp_path / "second" / "store", histories, items=29, told=told, names=names)
    places = Places(tmp_path / "second", None, store.folder)
    changes = {} if adapters is None else {"adapters": adapters}
    done, _ = trained(
        places,
        tmp_path / "second" / "run",
        model=ENCODER | {"texts": words},
        base=str(tmp_path / "first" / "run"),
        train={"epochs": 1, "optimizer": {"lr": 1e-12}, "precision": "float32"},
        **changes,
    )
    torch.testing.assert_close(done.model.table, done.model._encode_items(), rtol=0, atol=1e-5)
    model = ENCODER | {"texts": {"vocabulary": 300}}
    with pytest.raises(UserError, match="was trained with the words of"):
        other = places_of(tmp_path / "third", "uvwxyz")
        trained(other, tmp_path / "third" / "run", model=model, base=str(tmp_path / "first" / "run"))


def test_a_tokenizer_that_changes_changes_no_finished_run(pre_trained, tmp_path):
    given = tmp_path / "given.json"
    shutil.copy(pre_trained[0] / "tokenizer.json", given)
    places = places_of(tmp_path, "abcdef")
    model = ENCODER | {"items": "trained", "texts": {"tokenizer": str(given)}}
    _, tested = trained(places, tmp_path / "run", model=model, train={"epochs": 1})
    changed = json.loads(given.read_text())
    changed["model"]["merges"] = []
    given.write_text(json.dumps(changed))
    assert run.evaluate(run.reopen(tmp_path / "run", places), "test")["recformer"].masked == tested["recformer"].masked
    with pytest.raises(UserError, match="was trained with the words of"):
        later = ENCODER | {"pretrained": str(pre_trained[0]), "texts": {"tokenizer": str(given)}}
        trained(places, tmp_path / "other", model=later)


def test_vectors_of_items_with_numbers_of_their_own_are_not_kept(pre_trained, tmp_path):
    folder, _ = pre_trained
    given = {"pretrained": str(folder), "texts": {"tokenizer": str(folder)}, "ids": True, "items": "kept"}
    store = tmp_path / "stores" / "one"
    store.parent.mkdir()
    places_of(tmp_path, "aabbcc").store.rename(store)
    once = {"epochs": 3, "refresh": False, "optimizer": {"lr": 1e-2}}
    done, tested = trained(Places(tmp_path, None, store), tmp_path / "run", model=ENCODER | given, train=once)
    assert done.model.ids.weight.any()
    again = run.evaluate(run.reopen(tmp_path / "run", Places(tmp_path, None, store)), "test")
    assert again["recformer"].masked == tested["recformer"].masked


def test_a_metric_that_was_0_before_has_no_ratio(pre_trained, tmp_path, caplog):
    model = ENCODER | {"pretrained": str(pre_trained[0]), "texts": {"tokenizer": str(pre_trained[0])}}
    done, tested = trained(places_of(tmp_path, "abcdef"), tmp_path / "run", model=model, train={"epochs": 1})
    path = tmp_path / "run" / "evaluation" / "test" / "before-training" / "result.json"
    written = json.loads(path.read_text())
    written["values"]["masked"]["mrr"] = 0.0
    path.write_text(json.dumps(written))
    caplog.clear()
    with caplog.at_level("INFO", logger="turborec"):
        baseline.tell_after(done, tested["recformer"])
    assert f"mrr 0.0000 -> {tested['recformer'].masked['mrr']:.4f}" in caplog.text
    assert f"{tested['recformer'].masked['mrr']:.4f} (" not in caplog.text
