"""Whole runs of state-space models: what is told of them, ranks that no batch decides, and times of every kind."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stores import store_of
from turborec import recipes, run
from turborec.apply import asked_at, recommend_for
from turborec.data.batch import SequenceBatch
from turborec.data.loader import Batches, TrainingBatches, evaluation_batches
from turborec.data.schema import UNKNOWN_TIME
from turborec.errors import UserError
from turborec.evaluate import evaluate
from turborec.recommend import Lists
from turborec.stores import Places

ITEMS, DAY, YEAR = 40, 86_400, 365 * 86_400
CPU = torch.device("cpu")


def recipe_of(*overrides, **model):
    tree = {
        "data": {"source": {"kind": "online_retail"}},
        "batches": {"max_length": 20, "tokens": 500},
        "model": {"kind": "ss4rec", "width": 16, "layers": 1, "states": 4, "memory": 4} | model,
        "train": {"epochs": 2, "optimizer": {"lr": 0.01}},
        "anchors": False,
    }
    return recipes.from_tree(recipes.override(tree, overrides), "the test")


def histories(users=60):
    """Walks in steps of three through the items, of lengths 3 to 30, at times that go forward."""
    generator = np.random.default_rng(0)
    items, times = [], []
    for length in generator.integers(3, 31, users):
        items.append(((generator.integers(ITEMS) + 3 * np.arange(length)) % ITEMS + 1).tolist())
        times.append((10**9 + np.cumsum(generator.choice([0, 1, 60, DAY, YEAR], length))).tolist())
    return items, times


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("state_space")
    items, times = histories()
    store = store_of(place / "store", items, items=ITEMS, times=times)
    return run.train(recipe_of(), place / "run", Places(home=place, store=store.folder))


def test_the_log_says_what_computes_recurrences_and_proves_it(trained):
    told = (trained[0].folder / "log.txt").read_text(encoding="utf-8")
    assert told.count("Recurrences: by reference") == 1
    assert "Recurrences computed so far, forward and backward: " in told and "by reference" in told
    assert "triton" not in told and "mamba_ssm" not in told


def test_the_card_says_what_the_model_knows_of_time(trained):
    place, results = trained
    card = results["ss4rec"].card
    assert card["request_time"] == "none"
    assert card["model_options"] == {
        "mixers": ["s5", "mamba"],
        "intervals": {"kind": "log", "unit": 86400.0, "limit": 86400.0, "event": 1.0, "learned": False},
        "parametrisation": "stable",
        "init": "mamba",
        "repeat_bias": False,
    }
    written = json.loads((place.folder / "evaluation" / "test" / "ss4rec" / "result.json").read_text(encoding="utf-8"))
    assert written["protocol"]["model_options"] == card["model_options"]


def test_kernels_that_are_not_there_end_a_training_and_no_use_of_it(trained, tmp_path):
    place, results = trained
    store = Places(home=tmp_path, store=place.store.folder)
    with pytest.raises(UserError, match=r"train\.kernels=triton needs a CUDA device, and this is cpu"):
        run.train(recipe_of("train.kernels=triton"), tmp_path / "run", store, "cpu")
    elsewhere = tmp_path / "elsewhere"  # as if it had been trained where the kernels are
    elsewhere.mkdir()
    (elsewhere / "checkpoints").symlink_to(place.folder / "checkpoints")
    text = (place.folder / "recipe.yaml").read_text(encoding="utf-8")
    assert "kernels: auto" in text
    (elsewhere / "recipe.yaml").write_text(text.replace("kernels: auto", "kernels: mamba_ssm"), encoding="utf-8")
    (elsewhere / "data.json").write_text((place.folder / "data.json").read_text(encoding="utf-8"), encoding="utf-8")
    opened = run.reopen(elsewhere, store, "cpu")
    found = run.measure(opened, "test")
    assert found.masked == results["ss4rec"].masked


def test_another_stage_has_no_other_kernels():
    with pytest.raises(UserError, match="kernels are chosen once for a run"):
        recipe_of("train.kernels=reference", 'then=[{"kernels": "triton"}]')


def test_a_store_of_another_catalogue_is_refused(trained, tmp_path):
    items, times = histories(30)
    other = store_of(tmp_path / "other", [[i % 7 + 1 for i in row] for row in items], items=7, times=times)
    card = json.loads((other.folder / "card.json").read_text(encoding="utf-8"))
    (other.folder / "card.json").write_text(json.dumps(card | {"key": "f" * 16}), encoding="utf-8")
    with pytest.raises(UserError, match=r"are not those that the run in .* began with \(key f{16}, not 0{16}\)"):
        run.reopen(trained[0].folder, Places(home=tmp_path, store=other.folder))


def padded(batch, extra):
    fill = {"items": 0, "targets": 0, "times": UNKNOWN_TIME}
    return replace(batch, **{name: F.pad(getattr(batch, name), (0, extra), value=v) for name, v in fill.items()})


def turned(batch):
    order = torch.arange(len(batch.items)).flip(0)
    names = ("items", "times", "targets", "lengths", "users", "keys")
    return replace(batch, **{name: getattr(batch, name)[order] for name in names})


WAYS = {
    "as they are": (500, lambda batches: batches),
    "one user at a time": (1, lambda batches: batches),
    "all together": (10**6, lambda batches: batches),
    "padded": (500, lambda batches: (padded(batch, 9) for batch in batches)),
    "backwards": (300, lambda batches: (turned(batch) for batch in reversed(list(batches)))),
}


def test_no_rank_depends_on_padding_order_or_bucket(trained):
    """HR and NDCG are those of the run, user by user, however the users are put into batches."""
    place, results = trained
    for tokens, way in WAYS.values():
        shown = place.recipe.batches.model_copy(update={"tokens": tokens})
        batches = way(evaluation_batches(place.store, "test", shown))
        place.model.eval()
        with torch.no_grad():
            found = evaluate(place.model.scorer(), batches, place.store, "test", place.recipe.evaluation, CPU, 20)
        for metric in ("hr@10", "ndcg@10"):
            assert found.masked[metric] == results["ss4rec"].masked[metric]
            assert found.kept[metric] == results["ss4rec"].kept[metric]
            np.testing.assert_array_equal(
                found.per_user["kept"][metric], results["ss4rec"].per_user["kept"][metric], strict=True
            )


BEGIN = 10**9
STRANGE = {
    "every gap": [BEGIN, BEGIN, BEGIN + 1, BEGIN + 1 + 20 * YEAR, BEGIN + 1 + 20 * YEAR, BEGIN + 2 + 20 * YEAR],
    "all missing": [UNKNOWN_TIME] * 6,
    "some missing": [BEGIN, UNKNOWN_TIME, BEGIN + DAY, UNKNOWN_TIME, UNKNOWN_TIME, BEGIN + 2 * DAY],
    "backwards": [BEGIN + 5 * DAY, BEGIN + 4 * DAY, BEGIN, BEGIN + DAY, BEGIN - YEAR, BEGIN + 9 * DAY],
    "year 3000": [32_503_680_000 + DAY * k for k in range(6)],
    "before 1970": [-2 * YEAR, -YEAR, -1, 0, 1, YEAR],
    "from 1900 to 3000": [-2_208_988_800, -1, 0, BEGIN, BEGIN, 32_503_680_000],
}


@pytest.mark.parametrize("told", ["none", "target"])
@pytest.mark.parametrize(
    ("kind", "parametrisation"), [("raw", "stable"), ("raw", "faithful"), ("log", "stable"), ("clip", "stable")]
)
def test_times_of_every_kind_are_trained_on_and_ranked_by(tmp_path, kind, parametrisation, told):
    items = [[(7 * u + k) % ITEMS + 1 for k in range(6)] for u in range(3 * len(STRANGE))]
    store = store_of(tmp_path / "store", items, items=ITEMS, times=[*STRANGE.values()] * 3)
    recipe = recipe_of(f"batches.request_time={told}", intervals={"kind": kind}, parametrisation=parametrisation)
    opened, results = run.train(recipe, tmp_path / "run", Places(home=tmp_path, store=store.folder))
    assert all(np.isfinite(value) for value in results["ss4rec"].kept.values())
    assert all(parameter.isfinite().all() for parameter in opened.model.parameters())


def states(model, times):
    items, count = torch.arange(1, len(times) + 1)[None], torch.tensor([len(times)])
    zeros = torch.zeros(1, dtype=torch.int64)
    batch = SequenceBatch(items, torch.tensor([times]), torch.zeros_like(items), count, zeros, zeros)
    with torch.no_grad():
        return model._encode(batch)[0]


def test_lists_are_those_of_the_moment_they_are_asked_for(tmp_path):
    items, times = histories()
    store = store_of(tmp_path / "store", items, items=ITEMS, times=times)
    opened, _ = run.train(recipe_of("batches.request_time=target"), tmp_path / "run", Places(home=tmp_path, store=store.folder))

    def scores(told):
        (found,) = recommend_for(opened, Lists(k=ITEMS, seen="kept"), None, None, None, told)[0]
        return {
            (row, item): score for row in range(60) for item, score in zip(found.items[row], found.scores[row], strict=True)
        }

    latest = datetime.fromtimestamp(int(store.card["times"][1]), UTC)
    end, same, later = scores(None), scores(latest.isoformat()), scores("2100-01-01")
    assert end.keys() == same.keys() and np.allclose([end[k] for k in end], [same[k] for k in end], atol=1e-3)
    assert not np.allclose([end[k] for k in end], [later[k] for k in end], atol=1e-3)
    assert asked_at(opened, Lists(), "now").at > BEGIN
    with pytest.raises(UserError, match="neither an ISO 8601 time"):
        asked_at(opened, Lists(), "tomorrow")


def test_a_moment_means_nothing_to_a_model_that_is_not_told(trained):
    assert asked_at(trained[0], Lists()).at is None
    with pytest.raises(UserError, match="is not told"):
        asked_at(trained[0], Lists(), "now")


def test_a_gap_that_goes_back_is_a_gap_of_zero(trained):
    """Where an `order` column disagrees with time, no time has passed: what is negative would undo decay."""
    model = trained[0].model.eval()
    back = states(model, [BEGIN, BEGIN + DAY, BEGIN + DAY - 60, BEGIN + 2 * DAY])
    still = states(model, [BEGIN, BEGIN + DAY, BEGIN + DAY, BEGIN + 2 * DAY + 60])  # the next gap is counted from there
    assert torch.equal(back, still) and back.isfinite().all()


def test_an_order_that_disagrees_with_time_rules_and_is_trained_on(tmp_path):
    """From a file to results: histories are in the order they are given, whatever their times say."""
    rows = [f"u{u},i{(7 * u + k) % ITEMS},{BEGIN + DAY * ((5 * k) % 6)},{k}" for u in range(30) for k in range(6)]
    (tmp_path / "events.csv").write_text("\n".join(["user,item,time,place", *rows]) + "\n", encoding="utf-8")
    source = "data.source={kind: table, events: events.csv, user: user, item: item, time: time, order: place}"
    opened, results = run.train(recipe_of(source), tmp_path / "run", Places(home=tmp_path, raw=tmp_path))
    first = opened.store.histories.times[:6]
    assert [(int(time) - BEGIN) // DAY for time in first] == [0, 5, 4, 3, 2, 1]
    assert np.isfinite(results["ss4rec"].kept["ndcg@10"])


def test_a_missing_time_makes_two_gaps_unknown_and_no_others(trained):
    model = trained[0].model.eval()
    whole = states(model, [BEGIN, BEGIN + 60, BEGIN + DAY, BEGIN + 3 * DAY])
    lacking = states(model, [BEGIN, UNKNOWN_TIME, BEGIN + DAY, BEGIN + 3 * DAY])
    assert torch.equal(whole[0], lacking[0]) and not torch.equal(whole[1], lacking[1])
    nothing = states(model, [BEGIN, UNKNOWN_TIME, UNKNOWN_TIME, UNKNOWN_TIME])
    assert torch.equal(lacking[:3], nothing[:3]), "the third gap has no beginning, whatever its end"


def test_a_user_with_a_hundred_thousand_events(tmp_path):
    """Rows are windows of the history: nothing as long as the history itself is ever computed on."""
    events = 100_000
    long = (np.arange(events) * 3 % ITEMS + 1).tolist()
    items, times = histories(20)
    store = store_of(tmp_path / "store", [long, *items], items=ITEMS, times=[(BEGIN + 60 * np.arange(events)).tolist(), *times])
    shown = Batches(max_length=200, tokens=8192)
    plan = TrainingBatches(store, shown, seed=1).epoch(0)
    assert max(plan.width) <= 200 and max(len(o) * w for o, w in zip(plan.order, plan.width, strict=True)) <= 8192
    assert max(batch.items.numel() for batch in evaluation_batches(store, "test", shown)) <= 8192
    recipe = recipe_of("batches.max_length=200", "batches.tokens=8192", "train.epochs=1")
    opened, results = run.train(recipe, tmp_path / "run", Places(home=tmp_path, store=store.folder), steps=3)
    assert np.isfinite(results["ss4rec"].kept["ndcg@10"]) and len(results["ss4rec"].targets.users) == 21
    model, users, sizes = opened.model.eval(), None, set()
    with torch.no_grad():
        for item, time in zip(long[:1000], range(BEGIN, BEGIN + 1000 * 60, 60), strict=True):
            users = model.hear(users, torch.tensor([item]), torch.tensor([time]))
            if users.layers is not None:
                kept = [t for mixer in users.layers[0].mixers for t in (mixer if isinstance(mixer, tuple) else (mixer,))]
                sizes.add(sum(t.untyped_storage().nbytes() for t in kept))
        assert model.vectors(users).users.isfinite().all()
    assert len(sizes) == 1, "what is kept of a user grows with the events"
