"""The bridge to RecBole without RecBole: its environment's name and mistakes, its jobs, its dropout and its optimizers."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import atomic_files
from turborec import cli
from turborec.errors import UserError
from turborec.recbole import environment
from turborec.recbole.data import Rows
from turborec.recbole.job import PARITY, Job, Ranking, Task, checked
from turborec.recbole.model import Learner, RowDropout, _Draw

PACKAGE = Path(environment.__file__).parent


@pytest.fixture
def place(tmp_path):
    return atomic_files.write(tmp_path)


def pins():
    lines = environment.CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_everything_that_is_installed_is_pinned_below_what_recbole_cannot_bear():
    assert {"setuptools", "recbole", *environment.FLOOR, *environment.IMPORTED} <= pins().keys()
    assert pins()["recbole"] == "1.2.1"
    for name, limit in (("numpy", (2,)), ("scipy", (1, 13)), ("pandas", (3,))):
        assert tuple(map(int, pins()[name].split("."))) < limit
    assert tuple(map(int, pins()["torch"].split("."))) >= (2, 11)


def test_the_environment_is_called_by_its_constraints_and_its_python():
    pinned = environment.CONSTRAINTS.read_bytes()
    names = {environment.key(pinned, (3, 11)), environment.key(pinned, (3, 12)), environment.key(pinned + b"\n", (3, 11))}
    assert len(names) == 3 and environment.key(pinned, (3, 11)) in names


def test_it_finds_this_turborec_and_nothing_else_of_this_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    given = environment.surroundings(tmp_path)
    assert environment.surroundings(tmp_path) == given
    seen = Path(given["PYTHONPATH"])
    assert [path.name for path in seen.iterdir()] == ["turborec"]
    assert (seen / "turborec" / "recbole").resolve() == PACKAGE


def test_a_python_that_cannot_be_used_is_refused(tmp_path):
    with pytest.raises(UserError, match="no Python that can be run"):
        environment.ready(tmp_path, tmp_path / "python")
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho '[3, 14]'\n")
    other.chmod(0o755)
    with pytest.raises(UserError, match=r"run on Python 3\.11 and 3\.12"):
        environment.ready(tmp_path, other)


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] > environment.NEWEST, reason="there is no RecBole for this Python")
def test_a_failed_installation_leaves_no_environment_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match="could not be made") as told:
        environment.ready(tmp_path)
    assert "ERROR: " in str(told.value) and ".log" in str(told.value)
    assert {path.suffix for path in (tmp_path / "recbole").iterdir()} == {".lock", ".log"}


def test_recbole_is_named_by_one_file_alone():
    named = [path.name for path in PACKAGE.glob("*.py") if 'import_module("recbole' in path.read_text()]
    assert named == ["shims.py"]
    assert not [path for path in PACKAGE.glob("*.py") if re.search(r"^\s*(import|from) recbole", path.read_text(), re.M)]


def test_the_folder_of_the_atomic_files_or_the_one_above_it_may_be_named(place):
    for data in (place, place / "small"):
        assert checked(Job(model="BPR", dataset="small", data=str(data))).data == str(place / "small")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train"], "Name a model class to train"),
        (["check"], "Name a model class to check, or the run"),
        (["train", "BPR", "--dataset", "other", "--data", "."], "There is no other.inter in"),
        (["train", "BPR", "learning_rate:0.1"], "A setting is KEY=VALUE"),
        (["train", "B P R"], "named by its class"),
        (["train", "BPR", "--config", "none.yaml"], "cannot be read"),
        (["train", "--resume", "."], "is not the folder of a RecBole run"),
        (["train", "--resume", ".", "epochs=3"], "Name a model class to train"),
        (["train", "--resume", ".", "--config", "x.yaml"], "A resumed run keeps its settings"),
        (["train", "BPR", "--python", "nowhere"], "no Python that can be run"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(words, told, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("TURBOREC_HOME", str(place / "home"))
    monkeypatch.setattr(sys, "argv", ["turborec", "recbole", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and told in " ".join(said.split()), said
    assert not (place / "home" / "recbole").exists()


def test_a_task_survives_its_journey():
    job = Job(model="SASRec", settings=("epochs=3",), ranking=PARITY.model_copy(update={"ties": "mid"}))
    task = Task(kind="train", job=job, out="runs/x", processes=2)
    assert Task.model_validate_json(task.model_dump_json()) == task


def test_what_is_true_is_the_default_and_parity_is_the_opposite():
    plain, parity = Ranking().model_dump(), PARITY.model_dump()
    assert {name for name in plain if plain[name] != parity[name]} == {"times", "ties", "digits"}


def test_dropout_of_a_row_is_the_same_in_any_share_of_its_batch():
    draw = _Draw()
    layer, x = RowDropout(0.5, 1, draw), torch.ones(6, 3, 5)
    draw.begin(Rows(None, torch.arange(6), 7, 6), 0)
    whole = layer(x)
    for place in (0, 1):
        draw.begin(Rows(None, torch.arange(6)[place::2], 7, 3), place)
        assert torch.equal(layer(x[place::2]), whole[place::2])
    draw.begin(Rows(None, torch.arange(6), 8, 6), 0)
    assert not torch.equal(layer(x), whole)
    assert len({tuple(row.flatten().tolist()) for row in whole}) == 6
    assert torch.equal(layer.eval()(x), x)


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd", "adagrad", "rmsprop"])
def test_learners_are_those_of_torch(kind):
    model = nn.Linear(2, 2)
    found = Learner(kind=kind, lr=0.5, weight_decay=0.25).build(model)
    assert type(found).__name__.lower() == kind and found.defaults["weight_decay"] == 0.25 and found.defaults["lr"] == 0.5
