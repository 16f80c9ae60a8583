"""Models of RecBole, RecTools and RePlay rank as they did at home.

The checkpoints and scores in tests/fixtures/checkpoints are those of the libraries themselves (make.py, there).
"""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from turborec import adopt, cli, run
from turborec.bridges.foreign import read_ids
from turborec.data.loader import history_batch
from turborec.errors import UserError
from turborec.stores import Places

FIXTURES = Path(__file__).parents[1] / "fixtures" / "checkpoints"
KINDS = [(library, model) for library in adopt.LIBRARIES for model in ("sasrec", "bert4rec")]
HEADS = {("replay", "sasrec"): ["model.heads=2"]}  # which its checkpoint does not hold


def recipe(folder, events=FIXTURES / "events.csv"):
    path = folder / "recipe.yaml"
    source = {"kind": "table", "events": str(events), "user": "user", "item": "item", "order": "place"}
    content = {"data": {"source": source}, "model": {"kind": "sasrec"}, "batches": {"overlap": 3}, "train": {"epochs": 2}}
    path.write_text(json.dumps(content))
    return str(path)


def checkpoint(library, model, folder=FIXTURES):
    ids = folder / f"{library}-items.json"
    return adopt.Checkpoint(library, next(folder.glob(f"{library}-{model}.[pc]*t*")), ids if ids.exists() else None)


def adopted(folder, library, model, source=FIXTURES):
    name = recipe(folder, source / "events.csv")
    given = checkpoint(library, model, source)
    return adopt.adopt(given, name, HEADS.get((library, model), []), folder / "run", Places(folder), "cpu")


@pytest.mark.parametrize(("library", "model"), KINDS)
def test_scores_are_those_of_the_library(tmp_path, library, model):
    opened, results = adopted(tmp_path, library, model)
    compare(opened, FIXTURES / f"{library}-{model}.npz")
    assert set(results) == {model, "markov", "popularity"} and all(0 < r.values["ndcg@10"] < 1 for r in results.values())


def compare(opened, path):
    """The run's scores beside the library's, for whole histories."""
    with np.load(path) as found:
        expected, users, items = torch.from_numpy(found["scores"]), found["users"].tolist(), found["items"].tolist()
    store, device = opened.store, torch.device("cpu")
    rows, columns = store.user_ids.find(users), store.item_ids.find(items)
    assert (rows >= 0).all() and (columns >= 0).all()
    spans = [slice(*store.histories.offsets[row : row + 2]) for row in rows]
    histories = [store.histories.items[span].astype(np.int64) for span in spans]
    times = [store.histories.times[span] for span in spans]
    batch = history_batch(histories, times, opened.recipe.batches.max_length).to(device)
    opened.model.eval()
    with torch.no_grad():
        scorer = opened.model.scorer()
        got = scorer.score(scorer.users(batch), 1, store.num_items + 1)[:, columns]
    scale = expected.abs().amax(1, keepdim=True)
    assert ((got - expected).abs() / scale).max() < 1e-4
    # Lists are the same but where neighbours are closer than that.
    top, best = expected.topk(21)
    apart = (top[:, :-1] - top[:, 1:]) > 1e-4 * scale
    same = got.topk(20).indices == best[:, :-1]
    first = (apart & torch.cat([torch.ones(len(apart), 1, dtype=torch.bool), apart[:, :-1]], 1)) <= same
    assert first.all() and same.float().mean() > 0.99
    assert len({tuple(row) for row in best.tolist()}) > 1  # users do differ


@pytest.mark.parametrize(("library", "model"), [("rectools", "bert4rec"), ("replay", "sasrec")])
def test_an_imported_run_is_a_finished_run(tmp_path, library, model):
    first, results = adopted(tmp_path, library, model)
    assert run.is_finished(tmp_path / "run")
    again = run.reopen(tmp_path / "run", Places(tmp_path), "cpu")
    assert all(torch.equal(t, again.model.state_dict()[n]) for n, t in first.model.state_dict().items())
    resumed, same = run.train(run.recipe_of(tmp_path / "run"), tmp_path / "run", Places(tmp_path), "cpu")
    assert same[model].values == results[model].values
    assert all(torch.equal(t, resumed.model.state_dict()[n]) for n, t in first.model.state_dict().items())
    facts = json.loads((tmp_path / "run" / "imported.json").read_text())
    assert facts["library"] == library and len(facts["sha256"]) == 64
    with pytest.raises(UserError, match="holds a run already"):
        adopted(tmp_path, library, model)


def refused(folder, *arguments, **more):
    with pytest.raises(UserError) as caught:
        adopt.adopt(*arguments, folder / "run", Places(folder), "cpu", **more)
    return str(caught.value)


def test_what_the_checkpoint_does_not_say_must_be_said(tmp_path):
    name = recipe(tmp_path)
    assert "model.heads=2" in refused(tmp_path, checkpoint("replay", "sasrec"), name, [])
    bare = adopt.Checkpoint("recbole", FIXTURES / "recbole-sasrec.pth")
    assert "--items" in refused(tmp_path, bare, name, []) and 'field2token_id["item_id"]' in refused(tmp_path, bare, name, [])
    assert "'rectool'" in refused(tmp_path, adopt.Checkpoint("rectool", FIXTURES / "x"), name, [])


def test_the_wrong_library_is_told(tmp_path):
    name = recipe(tmp_path)
    for library, other in (
        ("recbole", "replay-sasrec.ckpt"),
        ("rectools", "recbole-sasrec.pth"),
        ("replay", "rectools-sasrec.ckpt"),
    ):
        told = refused(tmp_path, adopt.Checkpoint(library, FIXTURES / other), name, [])
        assert other in told and ("lacks" in told or "neither" in told)


def test_odd_contents_are_told(tmp_path):
    path, name = tmp_path / "odd.ckpt", recipe(tmp_path)
    for state in ({"item_embedding.weight": torch.ones(3)}, {1: 2}, {}):
        for settings in ({}, [], {"hidden_act": [], "n_layers": 1}, {"hidden_act": "gelu", "n_layers": 10**9}):
            torch.save({"state_dict": state, "config": {"model": "SASRec", "final_config_dict": settings}}, path)
            told = refused(tmp_path, adopt.Checkpoint("recbole", path, path), name, [])
            assert "odd.ckpt" in told


def test_other_items_are_told(tmp_path):
    ids = read_ids(FIXTURES / "replay-items.json")
    path, name = tmp_path / "items.json", recipe(tmp_path)
    given = adopt.Checkpoint("replay", FIXTURES / "replay-bert4rec.ckpt", path)
    path.write_text(json.dumps({f"sku-{text}": row for text, row in ids.items()}))
    told = refused(tmp_path, given, name, [])
    assert "knows 0 of the 90 items" in told and "'sku-" in told
    path.write_text(json.dumps(dict.fromkeys(ids, 1)))
    assert "should all differ" in refused(tmp_path, given, name, [])
    path.write_text(json.dumps(ids | {min(ids): 10**6}))
    assert "between 0 and" in refused(tmp_path, given, name, [])
    path.write_text(json.dumps(ids | {"other": 90}))
    assert "has 90 items" in refused(tmp_path, given, name, [])
    path.write_text("[1, 2]")
    assert "JSON object" in refused(tmp_path, given, name, [])


@pytest.mark.parametrize(("library", "shift"), [("recbole", -1), ("replay", 1)])
def test_rows_that_are_shifted_by_one_are_told(tmp_path, library, shift):
    """One item would be given the row of padding, and all others their neighbour's."""
    ids = {text: row for text, row in read_ids(FIXTURES / f"{library}-items.json").items() if text != "[PAD]"}
    path = tmp_path / "items.json"
    path.write_text(json.dumps({text: row + shift for text, row in ids.items()}))
    given = adopt.Checkpoint(library, checkpoint(library, "sasrec").path, path)
    assert "shifted by one" in refused(tmp_path, given, recipe(tmp_path), ["model.heads=2"] if library == "replay" else [])


def test_weights_that_do_not_fit_leave_no_run(tmp_path):
    told = refused(tmp_path, checkpoint("rectools", "sasrec"), recipe(tmp_path), ["model.hidden=99"])
    assert "do not fit" in told and not (tmp_path / "run").exists()


def test_an_unknown_item_gets_the_mean_of_the_scores(tmp_path, caplog):
    ids = read_ids(FIXTURES / "replay-items.json")
    lost = min(ids)
    path = tmp_path / "items.json"
    path.write_text(json.dumps({text: row for text, row in ids.items() if text != lost} | {"gone": ids[lost]}))
    given = adopt.Checkpoint("replay", FIXTURES / "replay-bert4rec.ckpt", path)
    opened, _ = adopt.adopt(given, recipe(tmp_path), [], tmp_path / "run", Places(tmp_path), "cpu")
    row = int(opened.store.item_ids.find([lost])[0]) + 1
    table, bias = opened.model.state_dict()["output.weight"], opened.model.state_dict()["bias"]
    vector = torch.randn(8)
    assert torch.isclose(table[row] @ vector + bias[row], known_scores(given, vector).mean(), atol=1e-5)
    told = (tmp_path / "run" / "log.txt").read_text()
    assert repr(lost) in told and "'gone'" in told


def known_scores(given, vector):
    tables, rows = given.read().tables, torch.tensor(list(given.read().ids.values()))
    return tables["output.weight"].rows[rows] @ vector + tables["bias"].rows[rows]


def test_the_command_leaves_a_run_that_recommends_as_the_library_did(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TURBOREC_HOME", str(tmp_path / "home"))

    def invoke(*words):
        monkeypatch.setattr(sys, "argv", ["turborec", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, capsys.readouterr()

    path = FIXTURES / "rectools-sasrec.ckpt"
    code, said = invoke("import", "rectools", path, recipe(tmp_path), "--out", "theirs", "--json")
    assert code == 0 and set(json.loads(said.out)["results"]) == {"sasrec", "markov", "popularity"}
    assert (tmp_path / "theirs" / "report.html").is_file()
    assert invoke("evaluate", "theirs")[0] == 0
    assert invoke("recommend", "theirs", "--k", "5", "--seen", "--out", "lists.csv")[0] == 0
    with np.load(FIXTURES / "rectools-sasrec.npz") as found:
        best = np.argsort(-found["scores"], axis=1)[:, :5]
        expected = dict(zip(found["users"].tolist(), found["items"][best].tolist(), strict=True))
    lists = {}
    for row in csv.DictReader((tmp_path / "lists.csv").read_text().splitlines()):
        lists.setdefault(row["user"], []).append(row["item"])
    assert lists == expected
    code, said = invoke("import", "recbole", FIXTURES / "recbole-sasrec.pth", recipe(tmp_path))
    assert code == 2 and "--items" in said.err and not any((tmp_path / "runs").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_checkpoints_made_anew_rank_as_well(tmp_path):
    """Builds the libraries' environments where they are missing, which needs the package index."""
    subprocess.run([sys.executable, FIXTURES / "make.py", tmp_path / "made"], check=True)
    for library, model in KINDS:
        place = tmp_path / f"{library}-{model}"
        place.mkdir()
        opened, _ = adopted(place, library, model, tmp_path / "made")
        compare(opened, tmp_path / "made" / f"{library}-{model}.npz")
