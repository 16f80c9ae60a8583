"""The search: it resumes, several processes share it, and the test part stays closed."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from stores import store_of
from turborec import recipes, run, search
from turborec.errors import InterruptedRunError, UserError
from turborec.recipe import dump
from turborec.search import Choice, Plan, Span
from turborec.stores import Places

TREE = {
    "data": {"source": {"kind": "online_retail"}},
    "batches": {"max_length": 12, "tokens": 192},
    "model": {"kind": "sasrec", "width": 8, "hidden": 16},
    "train": {"epochs": 3},
    "anchors": False,
}
SPACE = {
    "train.optimizer.lr": Span(low=1e-4, high=1e-1, log=True),
    "model.dropout": Span(low=0.0, high=0.5, step=0.1),
    "model.hidden": Choice(choices=(8, 16)),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    generator = np.random.default_rng(0)
    histories = [generator.integers(1, 31, generator.integers(3, 20)).tolist() for _ in range(25)]
    return Places(home=folder, store=store_of(folder / "store", histories, items=30).folder)


RECIPE = recipes.from_tree(TREE, "the test")


def test_the_best_by_validation_is_left_as_a_recipe_and_no_test_is_opened(places, tmp_path):
    found = search.search(RECIPE, SPACE, Plan(trials=5, prune=False), tmp_path, places)
    assert sorted(trial.number for trial in found) == list(range(5))
    assert {trial.state for trial in found} == {"complete"}
    values = [max(r["ndcg@10"] for r in records(trial.folder)) for trial in found]
    assert [trial.value for trial in found] == values == sorted(values, reverse=True)
    assert not list(tmp_path.rglob("evaluation")) and not list(tmp_path.rglob("result.json"))
    best = recipes.load(str(tmp_path / search.BEST))
    assert best == run.recipe_of(found[0].folder)
    assert best.train.optimizer.lr == found[0].settings["train.optimizer.lr"]
    assert {trial.settings["model.hidden"] for trial in found} <= {8, 16}


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "epoch"]


def test_the_same_seed_searches_the_same_settings(places, tmp_path):
    one, other = (search.search(RECIPE, SPACE, Plan(trials=3), tmp_path / name, places) for name in ("a", "b"))
    assert [(t.number, t.settings, t.value) for t in one] == [(t.number, t.settings, t.value) for t in other]


def test_a_search_goes_on_where_it_was_stopped(places, tmp_path, monkeypatch):
    plan = Plan(trials=3, prune=False)
    whole = search.search(RECIPE, SPACE, plan, tmp_path / "whole", places)

    def stop(number, step, command):
        if step == 9 and (tmp_path / "parted" / "trial-0001").exists():  # its first epoch is over, and saved
            raise InterruptedRunError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr("turborec.training.heed", stop)
        with pytest.raises(InterruptedRunError, match=r"Trial 1 is stopped .* Go on with the same command, turborec search"):
            search.search(RECIPE, SPACE, plan, tmp_path / "parted", places)
    trial = tmp_path / "parted" / "trial-0001"
    with pytest.raises(UserError, match="is a trial of a search, whose test part stays closed"):
        run.train(run.recipe_of(trial), trial, places)
    parted = search.search(RECIPE, SPACE, plan, tmp_path / "parted", places)
    facts = [[(t.number, t.settings, t.value, t.epochs) for t in trials] for trials in (whole, parted)]
    assert facts[0] == facts[1]
    assert (tmp_path / "parted" / "trial-0001" / "log.txt").read_text().count("Going on after step") == 1
    more = search.search(RECIPE, SPACE, Plan(trials=4, prune=False), tmp_path / "parted", places)
    assert len(more) == 4


KILLED = """
import os, signal, sys
from turborec import search, training
from turborec.__main__ import main
real = training._save
def save(run, state):
    real(run, state)
    if state.position.epoch == 3 and run.folder.name == "trial-0000":  # saved, and the study does not know of it yet
        os.kill(os.getpid(), signal.SIGKILL)
training._save = save
main()
"""


def test_an_epoch_that_was_saved_and_not_yet_told_is_told_when_the_search_goes_on(places, tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump(RECIPE))
    written(tmp_path, "train.optimizer.lr: {low: 1.0e-4, high: 1.0e-1, log: true}")
    arguments = ["search", "recipe.yaml", "space.yaml", "--trials", "2", "--no-prune", "--store", str(places.store), "--json"]
    found = []
    for name, start in (("killed", ["-c", KILLED]), ("killed", ["-m", "turborec"]), ("whole", ["-m", "turborec"])):
        command = [sys.executable, *start, *arguments, "--out", name]
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        found.append((done.returncode, [(t["number"], t["value"], t["epochs"]) for t in json.loads(done.stdout or "[]")]))
    assert found[0][0] == -signal.SIGKILL and found[1] == found[2]
    assert {epochs for _, _, epochs in found[1][1]} == {3}


def test_a_trial_that_another_process_has_ended_meanwhile_is_left_alone(places, tmp_path, monkeypatch):
    optuna = search._optuna()
    plan = Plan(trials=2, prune=False)
    search.search(RECIPE, SPACE, Plan(trials=1, prune=False), tmp_path, places)
    study = optuna.load_study(study_name=search.NAME, storage=search._storage(tmp_path))
    trial = study.ask()
    first = search.search(RECIPE, SPACE, plan, tmp_path, places)
    monkeypatch.setattr(search, "_left", lambda study: [optuna.Trial(study, trial._trial_id)])
    assert search.search(RECIPE, SPACE, plan, tmp_path, places) == first


def test_the_test_part_of_a_trial_stays_closed_wherever_it_lies(places, tmp_path):
    found = search.search(RECIPE, SPACE, Plan(trials=1), tmp_path / "search", places)
    moved = found[0].folder.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="whose test part stays closed"):
        run.evaluate(run.reopen(moved, places), "test")
    with pytest.raises(UserError, match="whose test part stays closed"):
        run.train(run.recipe_of(moved), moved, places)
    assert set(run.evaluate(run.reopen(moved, places), "validation")) == {"sasrec"}


@pytest.mark.parametrize(("epochs", "spared"), [(3, 1), (5, 1), (9, 2), (10, 2)])
def test_the_first_fifth_of_the_epochs_is_not_held_against_a_trial(epochs, spared):
    optuna = search._optuna()
    recipe = RECIPE.model_copy(update={"train": RECIPE.train.model_copy(update={"epochs": epochs})})
    study = optuna.create_study(direction="maximize", pruner=search._pruner(Plan(), recipe))
    for value in (0.5, 0.5, 0.5, 0.5, 0.5, 0.1):
        trial = study.ask()
        for epoch in range(1, epochs + 1):
            trial.report(value, epoch)
            if trial.should_prune():
                assert (value, epoch) == (0.1, spared + 1)
                return
        study.tell(trial, value)
    raise AssertionError("nothing was pruned")


def test_what_validates_below_the_others_is_cut_short(tmp_path):
    turns = [[(start + step) % 30 + 1 for step in range(12)] for start in range(60)]  # each item is followed by the next
    places = Places(home=tmp_path, store=store_of(tmp_path / "store", turns, items=30).folder)
    space = {"train.optimizer.lr": Choice(choices=(1e-9, 3e-2))}
    found = search.search(RECIPE, space, Plan(trials=12, sampler="random"), tmp_path / "search", places)
    pruned = [trial for trial in found if trial.state == "pruned"]
    assert pruned and all(trial.epochs < 3 for trial in pruned)
    assert found[0].state == "complete" and all(trial.number >= 5 for trial in pruned)
    assert "Pruned: its validation ndcg@10" in (pruned[0].folder / "status.json").read_text()


def test_a_trial_that_fails_is_told_and_the_search_goes_on(places, tmp_path, caplog):
    space = {"model.heads": Choice(choices=(2, 3))}  # 3 does not divide the width
    with pytest.raises(UserError, match="width 8 must be divisible by heads 3"):
        search.space_of(written(tmp_path, "model.heads: {choices: [2, 3]}"), RECIPE)
    found = search.search(RECIPE, space, Plan(trials=4, sampler="random"), tmp_path / "search", places)
    assert {trial.state for trial in found} == {"complete", "failed"}
    assert "failed" in caplog.text and "divisible by heads 3" in caplog.text


def written(folder, text):
    path = folder / "space.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model.widht: {choices: [8]}", "model.widht: no such key"),
        ("model.dropout: {low: 0.5, high: 0.1}", "low 0.5 must be below high 0.1"),
        ("model.dropout: {low: 0.0, high: 0.1, log: true}", "low must be above 0"),
        ("model.dropout: {low: 0.0, high: 1.5}", "dropout: expected a number less than 1"),
        ("model.dropout: 0.1", "model.dropout"),
        ("model.dropout: {lo: 0.0, high: 0.1}", r"low: needed, but not given\n  space.model.dropout.lo: no such key$"),
        ("model.width: [8, 16]", "expected a mapping of keys to values, got"),
        ("data.prepare.min_user_events: {choices: [3, 5]}", "would need data of its own"),
        (
            "model.widht: {choices: [8]}\ntrain.epoch: {low: 1, high: 2}",
            r"has 3 mistakes:\n  model.widht.*\n  train.epoch",
        ),
    ],
)
def test_a_space_that_cannot_be_is_refused(text, told, tmp_path):
    with pytest.raises(UserError, match=told):
        search.space_of(written(tmp_path, text), RECIPE)


def test_another_search_in_the_same_folder_is_refused(places, tmp_path):
    search.search(RECIPE, SPACE, Plan(trials=1), tmp_path, places)
    with pytest.raises(UserError, match="a search of another recipe or space"):
        search.search(RECIPE, {"model.dropout": SPACE["model.dropout"]}, Plan(trials=1), tmp_path, places)


def test_processes_share_a_search_and_one_that_is_killed_loses_nothing(places, tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump(RECIPE))
    written(tmp_path, "train.optimizer.lr: {low: 1.0e-4, high: 1.0e-1, log: true}")
    command = [sys.executable, "-m", "turborec", "search", "recipe.yaml", "space.yaml", "--trials", "6", "--no-prune"]
    command += ["--out", "search", "--store", str(places.store), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    while not list((tmp_path / "search").glob("trial-*/metrics.jsonl")):
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = subprocess.run([*command, "--jobs", "2"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert sorted(trial["number"] for trial in found) == list(range(6))
    assert {trial["state"] for trial in found} == {"complete"} and {trial["epochs"] for trial in found} == {3}
    assert (tmp_path / "search" / "best.yaml").is_file()


def test_a_trial_that_failed_is_never_the_best():
    trials = [search.Trial(0, "failed", 0.9, 1, {}, None), search.Trial(1, "complete", 0.3, 3, {}, None)]
    assert search.best_of(trials).number == 1 and search.best_of(trials[:1]) is None


def test_more_trials_may_be_asked_for_after_a_race_for_the_last(places, tmp_path):
    plan = Plan(trials=2, prune=False)
    search.search(RECIPE, SPACE, plan, tmp_path, places)
    study = search._optuna().load_study(study_name=search.NAME, storage=search._storage(tmp_path))
    study.tell(study.ask(), state=search._optuna().trial.TrialState.FAIL)  # what a process leaves that came too late
    found = search.search(RECIPE, SPACE, Plan(trials=3, prune=False), tmp_path, places)
    assert [trial.number for trial in sorted(found, key=lambda trial: trial.number)] == [0, 1, 3]


def test_values_are_written_as_people_do_and_whole_ones_stay_whole(places, tmp_path):
    space = {
        "model.dropout": search.Span(low=0.1, high=0.6, step=0.1),
        "model.hidden": search.Span(low=8, high=12, step=2),
    }
    found = search.search(RECIPE, space, Plan(trials=6, sampler="random"), tmp_path / "search", places)
    assert {trial.settings["model.dropout"] for trial in found} <= {0.1, 0.2, 0.3, 0.4, 0.5, 0.6}
    assert all(type(trial.settings["model.hidden"]) is int for trial in found)
