"""The commands about models: sizes without data, adapters, merging, export, search."""

import json

import numpy as np
import pytest

from stores import store_of

RECIPE = """\
data: {source: {kind: online_retail}}
batches: {max_length: 12, tokens: 192}
model: {kind: bert4rec, width: 16, hidden: 32}
train: {epochs: 1}
anchors: false
"""


@pytest.fixture
def place(tmp_path):
    generator = np.random.default_rng(0)
    store_of(tmp_path / "store", [generator.integers(1, 31, generator.integers(3, 20)).tolist() for _ in range(25)], items=30)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_sizes_are_told_without_data(run):
    code, said, _ = run("plan", "amazon-electronics/bert4rec-430m", "--items", "159749", "--json")
    assert code == 0 and json.loads(said)["parameters"]["total"] == 429_153_286
    code, said, _ = run("plan", "amazon-electronics/bert4rec-85m", "adapters={kind: lora, rank: 8}", "--items", "159749")
    assert code == 0 and "81,951,750 in tables" in said and "trained" in said


def test_a_known_catalogue_is_counted_where_the_data_are_not(run, tmp_path, monkeypatch):
    monkeypatch.setattr("turborec.sources.amazon.fetch", unreachable)
    words = ("plan", "amazon-electronics/bert4rec-130m", "--home", str(tmp_path / "home"))
    code, said, _ = run(*words, "--json")
    found = json.loads(said[said.index("{") :])
    assert code == 0 and found["parameters"]["total"] == 130_095_750 and "nothing was tried" in found["warning"]
    code, said, _ = run("plan", "ml-1m/bert4rec", "--items", "0")
    assert code == 2


def unreachable(remote, folder):
    from turborec.errors import UserError

    raise UserError(f"Cannot reach {remote.address}.")


def test_models_of_pairs_are_sized_with_their_data_alone(run):
    code, _, told = run("plan", "tiktok-mm/lightgcn", "--items", "10")
    assert code == 2 and "known with its data" in told


def test_a_base_is_adapted_merged_and_exported(run, place):
    store = ("--store", "store")
    assert run("train", "recipe.yaml", *store, "--out", "base")[0] == 0
    code, said, _ = run("train", "recipe.yaml", "base=base", "adapters={kind: lora, rank: 2}", *store, "--out", "lora")
    assert code == 0
    code, said, _ = run("evaluate", "lora", *store, "--json")
    adapted = json.loads(said)["bert4rec"]["masked"]["ndcg@10"]
    page = (place / "lora" / "report.html").read_text()
    assert "parameters" in page and "in tables" in page and "trained" in page
    code, said, _ = run("merge", "lora", *store, "--out", "whole", "--json")
    assert code == 0 and json.loads(said)["results"]["bert4rec"]["masked"]["ndcg@10"] == pytest.approx(adapted, abs=1e-6)
    code, _, told = run("merge", "whole", *store, "--out", "twice")
    assert code == 2 and "has no adapters" in told and not (place / "twice").exists()
    code, said, _ = run("recommend", "whole", *store, "--k", "3", "--out", "recs.csv")
    assert code == 0 and len((place / "recs.csv").read_text().splitlines()) == 1 + 25 * 3


def test_a_search_shows_its_trials(run, place):
    (place / "space.yaml").write_text("model.dropout: {low: 0.0, high: 0.5}\n")
    words = ("search", "recipe.yaml", "space.yaml", "--trials", "2", "--store", "store", "--out", "searched")
    code, said, _ = run(*words)
    assert code == 0 and "2 trials, by validation ndcg@10" in said and "model.dropout" in said
    code, said, _ = run(*words, "--json")
    assert code == 0 and [trial["state"] for trial in json.loads(said)] == ["complete", "complete"]
    (place / "space.yaml").write_text("model.dorpout: {low: 0.0, high: 0.5}\n")
    code, _, told = run(*words)
    assert code == 2 and "did you mean 'dropout'" in told
