import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from stores import store_of
from turborec import apply, recipes, run
from turborec.assembly import measure
from turborec.engine import checkpoint, trackers
from turborec.errors import InterruptedRunError, UserError
from turborec.stores import Places

TREE = {
    "data": {"source": {"kind": "online_retail"}},
    "batches": {"max_length": 12, "tokens": 192},
    "model": {"kind": "sasrec", "width": 16, "hidden": 32},
    "train": {"epochs": 3, "average": 0.9},
    "then": [{"epochs": 1, "start": "best"}],
}


@pytest.fixture
def options(tmp_path):
    generator = np.random.default_rng(0)
    histories = [generator.integers(1, 31, generator.integers(3, 20)).tolist() for _ in range(25)]
    return Places(home=tmp_path, store=store_of(tmp_path / "store", histories, items=30).folder)


def test_the_best_epoch_is_what_is_tested_and_reopened(options, tmp_path):
    recipe = recipes.from_tree(TREE, "the test")
    done, results = run.train(recipe, tmp_path / "run", options)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    epochs = [r for r in records if r["kind"] == "epoch"][3:]  # of the last stage
    best = max(epochs, key=lambda r: r["ndcg@10"])
    assert checkpoint.load_latest(tmp_path / "run" / "checkpoints").state["best_step"] == best["step"]
    reopened = run.reopen(tmp_path / "run", options)
    assert measure(reopened, "validation").values["ndcg@10"] == best["ndcg@10"]
    assert measure(reopened, "test").masked == results["sasrec"].masked
    assert all(torch.equal(a, b) for a, b in zip(reopened.model.parameters(), done.model.parameters(), strict=True))


def test_every_epoch_says_what_it_used(options, tmp_path):
    run.train(recipes.from_tree(TREE, "the test"), tmp_path / "run", options)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    usage, epochs = ([r for r in records if r["kind"] == kind] for kind in ("usage", "epoch"))
    assert [r["step"] for r in usage] == [r["step"] for r in epochs]
    assert {r["stage"] for r in usage} == {1, 2}
    assert all(0 <= r["data_wait_share"] < 1 and r["peak_mib"] > 1 for r in usage)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("of the time waiting for data") == len(epochs)
    assert "Stage 2 of 2 begins with the " in log


def test_stages_follow_each_other(options, tmp_path):
    run.train(recipes.from_tree(TREE, "the test"), tmp_path / "run", options)
    position = checkpoint.load_latest(tmp_path / "run" / "checkpoints").state["position"]
    assert position["stage"] == 1 and position["epoch"] == 1


def test_patience_ends_a_training(options, tmp_path):
    tree = TREE | {"train": {"epochs": 50, "optimizer": {"lr": 1e-9}}, "then": [], "stopping": {"patience_epochs": 2}}
    run.train(recipes.from_tree(tree, "the test"), tmp_path / "run", options)
    position = checkpoint.load_latest(tmp_path / "run" / "checkpoints").state["position"]
    assert position["epoch"] < 50


RARELY = TREE | {"train": {"epochs": 5, "average": 0.9}, "then": [], "stopping": {"every": 2}}


def records_of(folder, kind):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == kind]


def test_validations_may_be_rarer_than_epochs(options, tmp_path, caplog):
    with caplog.at_level("INFO", "turborec"):
        _, results = run.train(recipes.from_tree(RARELY, "the test"), tmp_path / "run", options)
    epochs, clocks = (records_of(tmp_path / "run", kind) for kind in ("epoch", "clock"))
    assert [record["epoch"] for record in epochs if "ndcg@10" in record] == [2, 4, 5]
    assert [record["epoch"] for record in clocks if "validation_seconds" in record] == [2, 4, 5]
    assert all(record["loss"] > 0 and record["targets_per_second"] > 0 for record in epochs)
    assert "loss" in caplog.text and caplog.text.count("not validated") == 2
    best = max((record for record in epochs if "ndcg@10" in record), key=lambda record: record["ndcg@10"])
    assert checkpoint.load_latest(tmp_path / "run" / "checkpoints").state["best_step"] == best["step"]
    assert results["sasrec"].values["ndcg@10"] == measure(run.reopen(tmp_path / "run", options), "test").values["ndcg@10"]


def test_it_is_validated_as_a_run_that_always_is(options, tmp_path):
    often = RARELY | {"stopping": {"every": 1}}
    for name, tree in (("often", often), ("rarely", RARELY)):
        run.train(recipes.from_tree(tree, "the test"), tmp_path / name, options)
    always, rare = ({r["epoch"]: r for r in records_of(tmp_path / name, "epoch")} for name in ("often", "rarely"))
    assert all(rare[epoch]["ndcg@10"] == always[epoch]["ndcg@10"] for epoch in (2, 4, 5))


@pytest.mark.parametrize("stopped", [1, 2, 3])
def test_rare_validations_resume_exactly(stopped, options, tmp_path, monkeypatch):
    recipe = recipes.from_tree(RARELY, "the test")
    run.train(recipe, tmp_path / "whole", options)
    ends = [record["step"] for record in records_of(tmp_path / "whole", "epoch")]

    def stop(number, step, command):
        if step == ends[stopped - 1]:
            raise InterruptedRunError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr("turborec.training.heed", stop)
        with pytest.raises(InterruptedRunError):
            run.train(recipe, tmp_path / "parted", options)
    assert [record["epoch"] for record in records_of(tmp_path / "parted", "epoch")] == list(range(1, stopped + 1))
    run.train(recipe, tmp_path / "parted", options)
    newest = [checkpoint.load_latest(tmp_path / name / "checkpoints") for name in ("whole", "parted")]
    assert newest[0].state == newest[1].state
    for group, tensors in newest[0].tensors.items():
        assert all(torch.equal(tensor, newest[1].tensors[group][name]) for name, tensor in tensors.items())
    timed = ("time", "targets_per_second")
    whole, parted = (
        [{k: v for k, v in r.items() if k not in timed} for r in records_of(tmp_path / n, "epoch")] for n in ("whole", "parted")
    )
    assert whole == parted


def test_a_run_without_a_validated_epoch_has_no_weights_to_open(options, tmp_path, monkeypatch):
    def stop(number, step, command):
        raise InterruptedRunError("stopped")

    monkeypatch.setattr("turborec.training.heed", stop)
    with pytest.raises(InterruptedRunError):
        run.train(recipes.from_tree(RARELY, "the test"), tmp_path / "run", options)
    with pytest.raises(UserError, match="no validated weights yet"):
        run.reopen(tmp_path / "run", options)


def test_a_counted_model_runs_through_the_same_door(options, tmp_path):
    tree = {"data": TREE["data"], "model": {"kind": "markov"}}
    _, results = run.train(recipes.from_tree(tree, "the test"), tmp_path / "run", options)
    assert set(results) == {"markov", "popularity"}
    reopened = run.reopen(tmp_path / "run", options)
    assert measure(reopened, "test").kept == results["markov"].kept


def test_another_store_under_a_begun_run_is_refused(options, tmp_path):
    recipe = recipes.from_tree(TREE, "the test")
    run.train(recipe, tmp_path / "run", options)
    other = store_of(tmp_path / "other", [[1, 2, 3, 4]] * 3, items=30).folder
    card = json.loads((other / "card.json").read_text())
    (other / "card.json").write_text(json.dumps(card | {"key": "another"}))
    for use in (lambda o: run.train(recipe, tmp_path / "run", o), lambda o: run.reopen(tmp_path / "run", o)):
        with pytest.raises(UserError, match="not those that the run"):
            use(Places(home=tmp_path, store=other))


def test_a_run_uses_the_store_it_began_with_though_the_raw_file_has_changed(tmp_path):
    events = tmp_path / "events.csv"
    rows = [f"u{u},i{(u * 7 + n * n) % 13},{n}" for u in range(20) for n in range(9)]
    events.write_text("\n".join(["user,item,time", *rows]))
    source = {"kind": "table", "events": str(events), "user": "user", "item": "item", "time": "time"}
    recipe = recipes.from_tree({"data": {"source": source}, "model": {"kind": "markov"}}, "the test")
    options = Places(home=tmp_path / "home")
    _, results = run.train(recipe, tmp_path / "run", options)
    events.write_text("\n".join(["user,item,time", *rows[::-1], "u1,i1,99"]))
    assert measure(run.reopen(tmp_path / "run", options), "test").masked == results["markov"].masked


def test_a_store_of_another_split_is_refused(options, tmp_path):
    card_file = options.store / "card.json"
    card_file.write_text(json.dumps(json.loads(card_file.read_text()) | {"split": {"kind": "leave_one_out"}}))
    tree = TREE | {"data": TREE["data"] | {"split": {"kind": "ratio"}}}
    with pytest.raises(UserError, match=r"was made with data.split"):
        run.train(recipes.from_tree(tree, "the test"), tmp_path / "run", options)


def test_a_stage_that_keeps_the_optimizer_has_its_own_settings(options, tmp_path):
    tree = TREE | {"then": [{"epochs": 1, "keep": ["optimizer"], "optimizer": {"weight_decay": 0.25}}]}
    run.train(recipes.from_tree(tree, "the test"), tmp_path / "run", options)
    state = checkpoint.load_latest(tmp_path / "run" / "checkpoints")
    assert state.state["optimizer"]["groups"][0]["weight_decay"] == 0.25
    steps = max(int(t) for name, t in state.tensors["optimizer"].items() if name.endswith(".step"))
    assert steps == state.state["position"]["global_step"]


def test_a_second_stage_goes_on_along_the_schedule_and_must_beat_the_first(options, tmp_path, caplog):
    """RecFormer's two stages: one optimizer, one schedule laid over both, and the best value carried over."""
    line = {"kind": "linear", "warmup": 0.2, "within": True}
    first = {"epochs": 3, "schedule": line, "schedule_epochs": 6, "optimizer": {"lr": 1e-3}}
    second = {"epochs": 4, "start": "best", "optimizer": {"lr": 1e-9}, "patience_epochs": 2}
    kept = {"keep": ["optimizer", "schedule", "best"]}
    recipe = recipes.from_tree(TREE | {"train": first, "then": [second | kept]}, "the test")
    run.train(recipe, tmp_path / "run", options)
    steps = records_of(tmp_path / "run", "train")
    epochs = records_of(tmp_path / "run", "epoch")
    sizes = np.diff([0, *(r["step"] for r in epochs)])
    shares = [(epoch + (step + 0.5) / size) / 6 for epoch, size in enumerate(sizes) for step in range(size)]
    expected = [(1e-3 if s < 0.5 else 1e-9) * (s / 0.2 if s < 0.2 else 1 - s) for s in shares]
    assert [r["lr"] for r in steps] == pytest.approx(expected)
    best = max(epochs[:3], key=lambda r: r["ndcg@10"])
    assert len(epochs) == 5  # of the second stage two, since nothing was gained
    assert checkpoint.load_latest(tmp_path / "run" / "checkpoints").state["best_step"] == best["step"]
    assert f"(best {best['ndcg@10']:.4f} in the stage before; 2 of 2 epochs without gain)" in caplog.text


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ({"train": {"keep": ["schedule"]}}, "train.keep: there is no stage before the first"),
        (
            {"then": [{"keep": ["schedule"], "schedule": {"kind": "cosine"}}]},
            "then.0.keep: its schedule is that of the stage before",
        ),
    ],
)
def test_what_is_kept_must_be_there(stages, said):
    with pytest.raises(UserError, match=said):
        recipes.from_tree(TREE | stages, "the test")


def test_items_without_names_go_by_their_ids(options, tmp_path):
    done, _ = run.train(recipes.from_tree({"data": TREE["data"], "model": {"kind": "markov"}}, "t"), tmp_path / "r", options)
    assert apply.titles(done.store) is None
    assert [name for _, name, _ in apply.example(done).items] == [raw for raw, _, _ in apply.example(done).items]


def test_a_model_below_its_anchors_is_told_of(options, tmp_path, caplog):
    histories = [[(u + n) % 30 + 1 for n in range(12)] for u in range(40)]  # a walk that Markov knows by heart
    places = Places(home=tmp_path, store=store_of(tmp_path / "walk", histories, items=30).folder)
    tree = TREE | {"then": [], "train": {"epochs": 1, "optimizer": {"kind": "adamw", "lr": 1e-6}}}
    done, _ = run.train(recipes.from_tree(tree, "the test"), tmp_path / "run", places)
    assert "sasrec ranks worse than markov, which needs no training" in caplog.text
    assert set(run.evaluate(done, "validation")) == {"sasrec", "markov", "popularity"}
    assert (tmp_path / "run" / "evaluation" / "validation" / "markov" / "result.json").is_file()


FLOOR = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"duckdb", "pyarrow", "rich", "typer", "tensorboard", "matplotlib", "jinja2"}:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)
sys.meta_path.insert(0, Hidden())
from turborec.run import main
main()
"""


def test_the_training_floor_trains_and_evaluates(options, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps(TREE))
    command = [tmp_path / "recipe.yaml", "seed=3", "--store", options.store, "--out", tmp_path / "run"]
    done = subprocess.run([sys.executable, "-c", FLOOR, *map(str, command)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"sasrec", "markov", "popularity"}
    assert (tmp_path / "run" / "evaluation" / "test" / "sasrec" / "per_user.npz").is_file()


def test_trackers_are_told_and_remembered_by_a_resumed_run(options, tmp_path, monkeypatch):
    told = []

    class Fake:
        def __init__(self, known):
            told.append(("run", known.id, known.recipe["seed"]))

        def write(self, kind, step, values):
            told.append((kind, step, values.get("loss")))

        def close(self):
            pass

    monkeypatch.setitem(trackers._KINDS, "fake", Fake)
    monkeypatch.setattr(trackers, "find_spec", lambda _: True)
    recipe = recipes.from_tree(TREE, "the test")
    run.train(recipe, tmp_path / "run", options, tracking=trackers.Tracking(("fake",)))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [entry for entry in told if entry[0] != "run"] == [(r["kind"], r["step"], r.get("loss")) for r in records]
    before = len(told)
    run.train(recipe, tmp_path / "run", options)
    assert told[before:] == [told[0]]


def test_a_run_that_began_before_there_was_a_setting_goes_on_with_its_default(options, tmp_path):
    run.train(recipes.from_tree(TREE, "the test"), tmp_path / "run", options)
    path = tmp_path / "run" / "recipe.yaml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "static_graph" not in line))
    assert len(path.read_text().splitlines()) < len(lines)
    run.train(recipes.from_tree(TREE, "the test"), tmp_path / "run", options)


def test_a_refused_training_leaves_the_run_that_is_there_alone(options, tmp_path):
    run.train(recipes.from_tree(TREE, "the test"), tmp_path / "run", options)
    before = (tmp_path / "run" / "status.json").read_text()
    with pytest.raises(UserError, match=r"another recipe(.|\n)*differ in\n  seed: 1 -> 9"):
        run.train(recipes.from_tree(TREE | {"seed": 9}, "the test"), tmp_path / "run", options)
    assert (tmp_path / "run" / "status.json").read_text() == before


@pytest.mark.parametrize("model", [TREE["model"], {"kind": "bert4rec", "width": 16, "hidden": 32, "heads": 2}])
def test_the_checks_before_a_run_change_nothing_of_it(model, options, tmp_path, monkeypatch):
    recipe = recipes.from_tree(TREE | {"model": model}, "the test")
    run.train(recipe, tmp_path / "run", options)
    found = json.loads((tmp_path / "run" / "preflight.json").read_text())
    assert {check["name"]: check["state"] for check in found} | {"times": "note"} == {
        name: "note" if name == "times" else "ok" for name in ("data", "split", "times", "kernels", "gradients", "checkpoint")
    }
    monkeypatch.setattr(run, "_preflight", lambda _: None)
    run.train(recipe, tmp_path / "without", options)
    checked, plain = (checkpoint.load_latest(tmp_path / name / "checkpoints").tensors for name in ("run", "without"))
    assert checked.keys() == plain.keys()
    assert all(torch.equal(tensor, plain[group][name]) for group in checked for name, tensor in checked[group].items())


def test_a_run_that_cannot_work_ends_before_its_first_step(options, tmp_path, monkeypatch):
    broken = [run.preflight.Check("split", "problem", "it leaks.")]
    monkeypatch.setattr(run.preflight, "checks", lambda *_: broken)
    with pytest.raises(UserError, match="does not begin"):
        run.train(recipes.from_tree(TREE, "the test"), tmp_path / "run", options)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
