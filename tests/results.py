"""Run folders with real results, made from scores instead of a training, for any test that compares or reports."""

import json
from pathlib import Path

import numpy as np
import torch

from scored import Table
from stores import store_of
from turborec.data.loader import Batches, evaluation_batches
from turborec.data.store import Store
from turborec.evaluate import Evaluation, evaluate
from turborec.recipe import dump
from turborec.recipes import from_tree

USERS, ITEMS, LENGTH = 60, 30, 12


def store_for_results(folder: Path, seed: int = 0) -> Store:
    """Users with 4 to 20 events; the last one of every second user is an item that training does not know."""
    generator = np.random.default_rng(seed)
    histories = [generator.integers(1, ITEMS, generator.integers(4, 21)).tolist() for _ in range(USERS)]
    return store_of(folder, [[*history[:-1], ITEMS] if u % 2 else history for u, history in enumerate(histories)], items=ITEMS)


def results_of(store: Store, place: Path, skill: float, seed: int, max_length: int = LENGTH, **settings: object) -> None:
    """Results of random scores in which the target of a user has `skill` more than the others."""
    scores = torch.rand(store.num_users, store.num_items + 1, generator=torch.Generator().manual_seed(seed))
    users = store.users_of("test")
    targets = store.histories.items[store.span("test", users)[0]]
    scores[torch.from_numpy(users), torch.from_numpy(np.asarray(targets, dtype=np.int64))] += skill
    config = Evaluation(**settings)
    batches = evaluation_batches(store, "test", Batches(max_length=max_length, tokens=256), config.users(store, "test"))
    result = evaluate(Table(scores), batches, store, "test", config, torch.device("cpu"), max_length)
    result.write(place, store)


def run_of(
    folder: Path, store: Store, skill: float = 0.2, seed: int = 1, width: int = 16, max_length: int = LENGTH, **settings: object
) -> Path:
    """A finished run of sasrec and its anchor popularity, which has no skill."""
    tree = {
        "data": {"source": {"kind": "online_retail"}},
        "model": {"kind": "sasrec", "width": width},
        "batches": {"max_length": max_length, "tokens": 256},
        "seed": seed,
    }
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(dump(from_tree(tree, "the test")))
    (folder / "data.json").write_text(json.dumps({"store": str(store.folder), "key": store.key}))
    (folder / "status.json").write_text(json.dumps({"state": "finished", "reason": ""}))
    results = folder / "evaluation" / "test"
    results_of(store, results / "sasrec", skill, seed, max_length, **settings)
    results_of(store, results / "popularity", 0.0, 99, max_length, **settings)
    return folder


def edit(path: Path, **changes: object) -> None:
    """Change entries of the protocol card in a `result.json`."""
    result = json.loads(path.read_text())
    result["protocol"] |= changes
    path.write_text(json.dumps(result))
