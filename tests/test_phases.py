"""Trainings that gate one another: what starts, what is not done again, and what the exit code tells; with real run folders."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from stores import store_of
from turborec import recipes, run
from turborec.errors import InterruptedRunError, UserError
from turborec.launch import phases
from turborec.recipe import MistakesError
from turborec.stores import Places

RECIPE = """\
data: {source: {kind: online_retail}}
batches: {max_length: 12, tokens: 480}
model: {kind: sasrec, width: 16, hidden: 32}
train: {epochs: 2}
anchors: false
"""


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """What trains a phase here, and the words of those it has trained."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    generator = np.random.default_rng(0)
    histories = [generator.integers(1, 31, generator.integers(3, 20)).tolist() for _ in range(25)]
    places = Places(home=tmp_path, store=store_of(tmp_path / "store", histories, items=30).folder)
    begun = []

    def train(words, place):
        begun.append(words)
        run.train(recipes.load(words[0], words[1:]), place, places)
        return 0

    return train, begun


def sequence(tmp_path, *conditions):
    """Phases of seed 1, 2, … with the condition of each."""
    rows = [f"- {{name: p{n}, recipe: recipe.yaml, overrides: [seed={n}], {c}}}" for n, c in enumerate(conditions, 1)]
    (tmp_path / "phases.yaml").write_text("phases:\n" + "\n".join(rows))
    return phases.load(str(tmp_path / "phases.yaml"))


def status(folder):
    return json.loads((folder / "status.json").read_text())


def test_each_begins_when_the_one_before_was_good_enough_and_none_twice(trained, tmp_path):
    train, begun = trained
    asked = sequence(tmp_path, "at_least: {ndcg@10: 0.01}", "at_least: {hr@10: 0.02, mrr: 0.01}, part: test", "at_least: {}")
    assert phases.run(asked, tmp_path / "out", [], train) == 0
    assert [words[1] for words in begun] == ["seed=1", "seed=2", "seed=3"]
    assert status(tmp_path / "out")["state"] == "finished"
    assert phases.run(asked, tmp_path / "out", [], train) == 0 and len(begun) == 3


@pytest.mark.parametrize("part", ["validation", "test"])
def test_what_is_not_good_enough_ends_it_and_the_code_tells_which(trained, tmp_path, part):
    train, begun = trained
    asked = sequence(tmp_path, "at_least: {ndcg@10: 0.0}", f"at_least: {{ndcg@10: 0.99}}, part: {part}", "at_least: {}")
    assert phases.run(asked, tmp_path / "out", [], train) == phases.FAILED + 2
    assert len(begun) == 2 and not (tmp_path / "out" / "p3").exists()
    said = status(tmp_path / "out")
    assert said["state"] == "failed" and said["code"] == 12 and f"{part} ndcg@10 is 0." in said["reason"]


def test_the_value_is_that_of_the_chosen_epoch_and_of_the_result(trained, tmp_path):
    train, _ = trained
    train(["recipe.yaml"], tmp_path / "run")
    epochs = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = max(record["ndcg@10"] for record in epochs if record["kind"] == "epoch")
    assert phases.measured(tmp_path / "run", "validation", "ndcg@10") == best
    result = json.loads((tmp_path / "run" / "evaluation" / "test" / "sasrec" / "result.json").read_text())
    assert phases.measured(tmp_path / "run", "test", "mrr") == result["values"]["masked"]["mrr"]


def test_a_training_that_fails_or_is_stopped(trained, tmp_path):
    train, begun = trained
    asked = sequence(tmp_path, "at_least: {}", "at_least: {}")
    assert phases.run(asked, tmp_path / "out", ["--raw=x"], lambda words, place: 137) == phases.FAILED + 1
    assert "exit code 137" in status(tmp_path / "out")["reason"]
    for code, told in ((75, 75), (130, 130), (128 + signal.SIGTERM, 75)):
        with pytest.raises(InterruptedRunError) as error:
            phases.run(asked, tmp_path / "out", [], lambda words, place, code=code: code)
        assert error.value.code == told and status(tmp_path / "out")["state"] == "interrupted"
    assert phases.run(asked, tmp_path / "out", [], train) == 0 and len(begun) == 2


def test_a_run_of_another_recipe_is_not_taken_for_a_phase(trained, tmp_path):
    train, _ = trained
    train(["recipe.yaml", "seed=9"], tmp_path / "out" / "p1")
    with pytest.raises(UserError, match="another recipe"):
        phases.run(sequence(tmp_path, "at_least: {}"), tmp_path / "out", [], train)
    assert not (tmp_path / "out" / "status.json").exists()


def test_two_do_not_share_a_folder(trained, tmp_path):
    train, begun = trained
    asked = sequence(tmp_path, "at_least: {}")

    def twice(words, place):
        with pytest.raises(UserError, match="in use by process"):
            phases.run(asked, tmp_path / "out", [], train)
        return 0

    with pytest.raises(UserError, match="does not say"):
        phases.run(sequence(tmp_path, "at_least: {ndcg@10: 0}"), tmp_path / "out", [], twice)
    assert begun == []


def test_what_another_machine_is_given_names_recipes_that_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    text, beside = sequence(tmp_path, "at_least: {mrr: 0.1}, part: test").carried("runs/two")
    assert beside == {"runs/two.p1.yaml": RECIPE}
    (tmp_path / "there.yaml").write_text(text.replace("runs/two.p1.yaml", "recipe.yaml"))
    assert phases.load("there.yaml") == phases.load("phases.yaml")
    (tmp_path / "shipped.yaml").write_text("phases: [{name: a, recipe: ml-1m/sasrec}]")
    assert phases.load("shipped.yaml").carried("runs/two")[1] == {}


def test_a_trial_asks_for_nothing(trained, tmp_path):
    train, begun = trained
    asked = sequence(tmp_path, "at_least: {ndcg@10: 0.99}", "at_least: {}").trial(["train.epochs=1"])
    assert phases.run(asked, tmp_path / "out", [], train) == 0
    assert begun == [["recipe.yaml", f"seed={n}", "train.epochs=1"] for n in (1, 2)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("phases: []", "at least one entry"),
        ("phases: [{name: a, recipe: ml-1m/sasrec}, {name: a, recipe: ml-1m/sasrec}]", "two are called 'a'"),
        ("phases: [{name: ../a, recipe: ml-1m/sasrec}]", "name"),
        ("phases: [{name: a, recipe: ml-1m/sasrek}]", "did you mean 'ml-1m/sasrec'"),
        ("phases: [{name: a, recipe: ml-1m/sasrec, at_least: {ndgc@10: 0.1}}]", "did you mean 'ndcg@10'"),
        ("phases: [{name: a, recipe: ml-1m/sasrec, at_most: {}}]", "at_most"),
    ],
)
def test_mistakes_are_told_before_anything_begins(tmp_path, text, told):
    (tmp_path / "phases.yaml").write_text(text)
    with pytest.raises((UserError, MistakesError)) as error:
        phases.load(str(tmp_path / "phases.yaml"))
    assert told in str(error.value)


@pytest.mark.parametrize("name", phases.shipped())
def test_what_ships_is_sound(name):
    assert phases.load(name).phases


def test_a_small_data_set_comes_before_the_large_one():
    first, second = phases.load("ml-1m-then-ml-20m").phases
    assert (first.recipe, second.recipe) == ("ml-1m/sasrec", "ml-20m/sasrec") and first.at_least


TABLE = """\
data: {source: {kind: table, events: events.csv, user: user, item: item, time: time}}
batches: {max_length: 12, tokens: 48}
model: {kind: sasrec, width: 16, hidden: 32}
train: {epochs: 6, precision: float32}
anchors: false
"""


def launched(folder):
    command = [sys.executable, "-m", "turborec", "launch", "phases", "phases.yaml", "--out", "out", "--home", "home"]
    given = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "said").open("ab") as said:
        return subprocess.Popen(
            [*command, "--processes", "2", "--restarts", "1"], cwd=folder, stdout=said, stderr=said, env=given
        )


def under_way(process, run):
    """Wait until the run has trained, validated and saved an epoch."""
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if list((run / "checkpoints").glob("step_??????")):
            return
        time.sleep(0.01)
    pytest.fail((run.parents[1] / "said").read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_stopped_killed_and_started_again_it_comes_to_its_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    rows = [f"{u},{generator.integers(1, 31)},{t}" for u in range(60) for t in range(generator.integers(4, 30))]
    (tmp_path / "events.csv").write_text("user,item,time\n" + "\n".join(rows))
    (tmp_path / "recipe.yaml").write_text(TABLE)
    sequence(tmp_path, "at_least: {ndcg@10: 0.01}", "at_least: {ndcg@10: 0.99}", "at_least: {}")
    process = launched(tmp_path)
    under_way(process, tmp_path / "out" / "p1")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75, (tmp_path / "said").read_text()
    assert status(tmp_path / "out")["state"] == "interrupted" and not (tmp_path / "out" / "p2").exists()

    process = launched(tmp_path)
    under_way(process, tmp_path / "out" / "p2")
    worker = json.loads((tmp_path / "out" / "p2" / "status.json").read_text())["pid"]
    os.kill(worker, signal.SIGKILL)
    assert process.wait(timeout=240) == 12, (tmp_path / "said").read_text()
    said = (tmp_path / "said").read_text()
    assert "Exit code 137, start 1 of 2" in said and said.count("Going on after step") == 2
    assert not (tmp_path / "out" / "p3").exists()

    assert launched(tmp_path).wait(timeout=120) == 12
    assert (tmp_path / "said").read_text().count("finished before") == 2
