"""Whole runs of models of users and items, from raw files: trained, resumed, shared out, and asked for lists."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from turborec import apply, recipes, run, stores
from turborec.assembly import assemble, measure
from turborec.compare import Terms, compare
from turborec.engine import checkpoint
from turborec.errors import UserError
from turborec.launch.verify import verify
from turborec.recommend import Lists
from turborec.stores import Places

USERS, ITEMS = 60, 40
MODELS = {
    "lightgcn": {},
    "freedom": {"neighbours": 4, "drop": 0.5},
    "dragon": {"neighbours": 4, "user_neighbours": 5, "hidden": 8},
    "mmgcn": {"reduced": {"image": 8}},
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Files as of TikTok: users of three tastes, items that look and sound as they are liked; one user has tests alone."""
    folder = tmp_path_factory.mktemp("raw")
    generator = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        liked = np.flatnonzero(np.arange(ITEMS) % 3 == user % 3)
        chosen = generator.permutation(liked)[: generator.integers(6, 12)]
        parts = ["train"] * (len(chosen) - 3) + ["valid", "test", "test"]
        rows += [(user, int(item), part if user else "test") for item, part in zip(chosen, parts, strict=True)]
    names = ("user_id", "item_id", "split")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), folder / "interactions.parquet")
    taste = np.eye(3)[np.arange(ITEMS) % 3]
    for name in ("image", "audio"):
        np.save(
            folder / f"{name}_feat.npy", (taste @ generator.random((3, 6)) + 0.1 * generator.random((ITEMS, 6))).astype("f4")
        )
    return folder


def recipe_of(model, **others):
    tree = {
        "data": {"source": {"kind": "tiktok"}, "split": {"kind": "labelled"}},
        "batches": {"tokens": 64, "max_length": 10},
        "model": {"kind": model, "width": 8, **MODELS[model]},
        "train": {"epochs": 15, "optimizer": {"kind": "adamw", "lr": 2e-2}, "precision": "float32"},
        "evaluation": {"masks": "training"},
        "select": "recall@20",
        "anchors": False,
        "stopping": {"patience_epochs": None},
    }
    return recipes.from_tree(tree | others, "the test")


@pytest.fixture(scope="module")
def places(raw, tmp_path_factory):
    return Places(home=tmp_path_factory.mktemp("home"), raw=raw)


@pytest.mark.parametrize("model", MODELS)
def test_a_run_learns_tastes_and_has_an_answer_for_everybody(model, places, tmp_path):
    done, results = run.train(recipe_of(model), tmp_path / "run", places)
    assert results[model].masked["recall@20"] > 0.9  # 20 of 40 items are enough for the taste
    assert results[model].card["masks"] == "the events of the training part alone"
    told = results[model].card["model_options"].get("features") if "model_options" in results[model].card else None
    assert told is None or {name: (one["width"], one["items"]) for name, one in told.items()} == dict.fromkeys(
        ("image", "audio"), (6, ITEMS)
    )
    assert "training_windows" not in results[model].card
    assert measure(run.reopen(tmp_path / "run", places), "test").masked == results[model].masked
    log = (tmp_path / "run" / "log.txt").read_text()
    assert told is None or all(f"{name} of {ITEMS} of {ITEMS} items (6)" in log for name in told)
    epochs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(record["kind"] == "epoch" for record in epochs) == 15
    # Somebody new with a history, somebody of whom no event is known, and a user of the tests alone.
    (tmp_path / "new.csv").write_text("user,item\nstranger,0\nstranger,3\nnobody,none\n")
    lists, popular = {}, {}
    for some in apply.recommend_for(done, Lists(k=5), None, tmp_path / "new.csv", None)[0]:
        for user, items, known in zip(some.users, some.items, some.popular.tolist(), strict=True):
            lists[user], popular[user] = [int(item) for item in done.store.item_ids.raw(items - 1)], known
    assert popular == {"stranger": False, "nobody": True}
    assert sum(item % 3 == 0 for item in lists["stranger"]) >= 4 and not {0, 3} & set(lists["stranger"])
    (stored,) = apply.recommend_for(done, Lists(k=5), ["0", "7"], None, None)[0]
    assert stored.users == ["0", "7"] and np.isfinite(stored.scores).all()


@pytest.mark.parametrize(
    "model", ["lightgcn", "mmgcn", *(pytest.param(one, marks=pytest.mark.slow) for one in ("freedom", "dragon"))]
)
def test_what_is_killed_and_resumed_is_what_never_stopped(model, places):
    store = stores.of_recipe(recipe_of(model), places)
    found = verify(recipe_of(model), store.folder, steps=12, kills=2)
    assert found.equal, found.differing


@pytest.mark.parametrize("model", [pytest.param("freedom", marks=pytest.mark.slow), "mmgcn"])
def test_two_processes_compute_the_same_training(model, places, tmp_path):
    recipe = recipe_of(model, train={"epochs": 1, "precision": "float32"})  # of more, roundings would grow
    store = stores.of_recipe(recipe, places)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
    weights = []
    for processes in (1, 2):
        command = [sys.executable, "-m", "turborec", "launch", "local", "--processes", str(processes), "recipe.yaml"]
        command += ["--store", str(store.folder), "--out", f"run{processes}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        weights.append(checkpoint.load_latest(tmp_path / f"run{processes}" / "checkpoints").tensors["model"])
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], atol=1e-5), name


def test_graphs_are_kept_beside_the_stores_and_not_among_data(raw, places):
    store = stores.of_recipe(recipe_of("dragon"), places)
    before = sorted(path.name for path in raw.iterdir())
    assemble(recipe_of("dragon"), store)
    kept = {path.name for path in (places.home / "graphs").iterdir()}
    assemble(recipe_of("dragon"), store)
    assert len(kept) == 2 and {path.name for path in (places.home / "graphs").iterdir()} == kept
    assert sorted(path.name for path in raw.iterdir()) == before
    assert not any("graph" in path.name for path in store.folder.iterdir())


def test_a_folder_of_raw_files_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"There is no folder .*nowhere"):
        stores.of_recipe(recipe_of("lightgcn"), Places(home=tmp_path, raw=tmp_path / "nowhere"))


def test_the_order_of_files_is_no_anchor(places, tmp_path):
    """Nothing but the place in the file orders these events, so that Markov would learn how it was written."""
    _, results = run.train(recipe_of("lightgcn", anchors=True, train={"epochs": 1}), tmp_path / "run", places)
    assert list(results) == ["lightgcn", "popularity"]


def test_new_items_are_ranked_among_each_other(places, tmp_path):
    held = {"data": {"source": {"kind": "tiktok"}, "split": {"kind": "item_holdout", "validation": 0.2, "test": 0.2}}}
    unseen = {"evaluation": {"candidates": "unseen", "metrics": [{"kind": "recall", "k": 5}]}, "select": "recall@5"}
    recipe = recipe_of("dragon", **held, **unseen)
    done, results = run.train(recipe, tmp_path / "run", places)
    ranked = int((done.store.item_counts()[1:] == 0).sum())
    assert ranked == 16 and results["dragon"].card["candidates"] == "the items that training has no event of"
    assert results["dragon"].masked["recall@5"] > 0.7 > 5 / ranked  # features know the taste of items that nobody had


def test_a_metric_that_is_always_0_chooses_nothing_and_says_so(places, tmp_path, caplog):
    held = {"data": {"source": {"kind": "tiktok"}, "split": {"kind": "item_holdout"}}, "anchors": False}
    first = {"evaluation": {"metrics": [{"kind": "hr", "k": 1}]}, "select": "hr@1"}
    run.train(recipe_of("lightgcn", **held, **first, train={"epochs": 2}), tmp_path / "run", places)
    assert "Validation hr@1 was always 0 and so chose nothing" in caplog.text and "evaluation.candidates=unseen" in caplog.text


def test_runs_with_other_tables_may_be_compared(raw, places, tmp_path):
    """What is ranked does not depend on features: the card names the tables, with their checksums."""
    np.save(tmp_path / "other.npy", np.random.default_rng(1).random((ITEMS, 3)).astype("f4"))
    source = {
        "kind": "table",
        "events": str(raw / "interactions.parquet"),
        "user": "user_id",
        "item": "item_id",
        "label": "split",
    }
    for name, table in (("bare", None), ("image", raw / "image_feat.npy"), ("other", tmp_path / "other.npy")):
        features = {} if table is None else {"features": {"image": {"table": str(table), "ids": str(tmp_path / "ids.txt")}}}
        (tmp_path / "ids.txt").write_text("".join(f"{item}\n" for item in range(ITEMS)))
        data = {"data": {"source": source, "split": {"kind": "labelled"}, **features}}
        model = {"kind": "vbpr" if table else "bpr", "width": 8}
        tree = {**recipe_of("lightgcn", train={"epochs": 1}).model_dump(mode="json"), **data, "model": model}
        run.train(recipes.from_tree(tree, name), tmp_path / name, places)
    found = compare([str(tmp_path / name) for name in ("bare", "image", "other")], Terms("test", resamples=200))
    assert len(found.contestants) == 3
    sums = [one.card["model_options"]["features"]["image"]["sha256"] for one in found.contestants[1:]]
    assert len(set(sums)) == 2
