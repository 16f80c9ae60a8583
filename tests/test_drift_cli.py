"""`turborec drift` and `data windows` as they are typed: exit codes, JSON, pages and mistakes."""

import json
import re
import shutil

import numpy as np
import pytest

RECIPE = """\
data:
  source: {kind: simulated, users: 400, items: 60, mean_length: 30.0, clusters: 4, weeks: 40, cold: 0.0, drift: 2020-08-31}
  prepare: {min_user_events: 1, min_item_events: 1}
  split: {kind: global_time, validation_from: 2020-07-06, test_from: 2020-08-03}
batches: {max_length: 20, tokens: 1000}
model: {kind: ss4rec, width: 16, states: 4, memory: 2, layers: 1}
train: {epochs: 2, optimizer: {lr: 0.01}}
anchors: false
"""


def test_a_run_its_data_and_a_page(run, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert run("train", "recipe.yaml", "--out", "out")[0] == 0
    code, said, _ = run("drift", "out", "--users", "300", "--resamples", "60", "--page", "drift.html", "--json")
    found = json.loads(said)
    assert code == found["code"] in (3, 4) and found["periods"][0] == "2020-08-03 to 2020-09-01"
    assert {one["statistic"] for one in found["data"]} >= {"item mix", "item vectors", "gaps"}
    assert len(found["values"]) == 1 + len(found["losses"]) and found["metric"] == "ndcg@10"
    page = (tmp_path / "drift.html").read_text()
    assert "<script" not in page and "preference" in page and len(page) < 300_000
    assert any("data.prepare.values=true" in one for one in found["remarks"]) and found["shares"] == {}
    assert "<title>Check for drift: the" in page and found["says"][0] in page.replace("&#39;", "'") and "sampled_" not in page
    code, said, _ = run("drift", "out", "--users", "300", "--resamples", "60", "--every", "2")
    assert code in (0, 3, 4) and "Verdict" in said and "new users" in said
    assert ("Moved:" in said) == bool(re.search(r"\d\*", said.split("beyond its threshold")[0]))

    code, said, _ = run("drift", "out", "--null", "--resamples", "60", "--json")
    assert code == 0 and json.loads(said)["values"] == []

    store = json.loads((tmp_path / "out" / "data.json").read_text())["store"]
    code, said, told = run("data", "prepare", "recipe.yaml", "data.source.items=80", "--json")
    other = {"store": json.loads(said)["store"], "key": json.loads((tmp_path / "out" / "data.json").read_text())["key"]}
    shutil.copytree(tmp_path / "out", tmp_path / "moved")
    (tmp_path / "moved" / "data.json").write_text(json.dumps(other))
    code, _, told = run("drift", "moved")
    assert code == 2 and "not those that the run" in told
    code, said, told = run("drift", "out", "--reference", store)
    assert code == 2 and "With a run, --reference is what it was trained on" in told
    code, said, _ = run("data", "windows", store, "--every", "month", "--json")
    windows = json.loads(said)
    assert "Not whole, and left out: 2020-10-01 to 2020-11-01" in run("data", "windows", store)[1]
    assert code == 0 and windows[0]["window"] == f"{store}@2020-08-03..2020-09-01" and windows[0]["events"] > 0
    before = f"{store}@2020-01-06..2020-08-03"
    code, said, _ = run("drift", "--reference", before, "--current", windows[1]["window"], "--json")
    assert code in (0, 3) and json.loads(said)["periods"] == ["2020-09-01 to 2020-10-01"]


def test_files_of_recbole(run, tmp_path):
    generator = np.random.default_rng(0)
    for name, first, new in (("past", 0, 0), ("now", 80, 100)):
        rows = [
            f"{user}\t{item + new}\t{(first + day) * 86_400 + second}"
            for day in range(80 if not first else 40)
            for user, item, second in zip(*(generator.integers(0, most, 40) for most in (50, 30, 86_400)), strict=True)
        ]
        (tmp_path / f"{name}.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]))
    past, now = "past.inter@1970-01-01..1970-02-23", "past.inter@1970-02-23..1970-03-23"
    code, said, _ = run("drift", "--reference", past, "--current", now, "--every", "week", "--json")
    found = json.loads(said)
    assert code in (0, 3) and len(found["periods"]) == 3
    assert any("Not whole, and left out: 1970-03-16 to 1970-03-23 (240 events)" in one for one in found["remarks"])
    assert not any(any(one["moved"]) for one in found["data"])
    assert any(one.startswith("Ratings are not looked at") for one in found["remarks"])
    code, _, told = run("drift", "--reference", "past.inter", "--current", "now.inter", "--every", "week")
    assert code == 2 and "no item in common" in told
    code, _, told = run("drift", "--reference", past)
    assert code == 2 and "is a window: name what it is held against with --current" in told
    code, said, _ = run("drift", "--reference", past, "--current", now, "--every", "2", "--json")
    found = json.loads(said)
    assert code == 0 and all(all(one["untold"]) and one["thresholds"] == [None, None] for one in found["data"])
    assert "10 of 10 statistics cannot be told from so few or so different periods" in found["says"][0]


def test_files_are_called_what_the_user_calls_them(run, tmp_path):
    users = np.random.default_rng(0).integers(0, 7, 600)
    rows = [f"{user}\t{n % 5}\t{1_600_000_000 + n * 9000}" for n, user in enumerate(users)]
    head = "user_id:token\titem_id:token"
    (tmp_path / "a.inter").write_text("\n".join([f"{head}\ttimestamp:float", *rows]))
    (tmp_path / "undated.inter").write_text("\n".join([head, *(row.rpartition("\t")[0] for row in rows)]))
    (tmp_path / "fine.inter").write_text("\n".join([f"{head}\ttimestamp:float", *(f"{row}000" for row in rows)]))
    code, _, told = run("drift", "--reference", "a.inter")
    assert code == 2 and "a.inter is not split by time" in told and "--reference a.inter@FROM..TO" in told
    code, _, told = run("drift", "--reference", "undated.inter")
    assert code == 2 and "The events of undated.inter have no times" in told
    code, _, told = run("drift", "--reference", "fine.inter")
    assert code == 2 and "prepare a store with data.source='{kind: recbole, name: fine" in told
    code, _, told = run("drift", "--reference", "a.inter", "--current", "a.inter")
    assert code == 2 and "With --current the reference is all of a.inter that is named, its test part too" in told
    parts = ("--reference", "a.inter@2020-09-13..2020-10-20", "--current", "a.inter@2020-10-20..2020-11-15")
    code, said, told = run("drift", *parts, "--every", "week")
    assert "Ratings are not looked at: a.inter has no column rating." in said and "turborec-drift-" not in said + told


def test_help_tells_the_short_form(run):
    assert "drift check RUN" in " ".join(run("drift", "--help")[1].split())


def test_ratings_and_genres_of_files_of_recbole_are_looked_at(run, tmp_path):
    generator = np.random.default_rng(0)
    rows = [
        f"{generator.integers(50)}\t{generator.integers(30)}\t{day * 86_400 + generator.integers(86_400)}\t"
        f"{generator.integers(1, 6) if day < 60 else 5}"
        for day in range(80)
        for _ in range(40)
    ]
    (tmp_path / "all.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float\trating:float", *rows]))
    items = [f"{item}\tg{item % 3} Comedy\t{1990 + item}" for item in range(30)]
    (tmp_path / "all.item").write_text("\n".join(["item_id:token\tgenre:token_seq\tyear:token", *items]))
    held = ("drift", "--reference", "all.inter@1970-01-01..1970-02-23", "--current", "all.inter@1970-02-23..1970-03-23")
    code, said, _ = run(*held, "--every", "week", "--json")
    found = json.loads(said)
    told = {one["statistic"]: one for one in found["data"]}
    assert code == 3 and told["ratings"]["moved"] == [False, True, True] and told["ratings"]["cause"] == "preference"
    assert found["shares"]["ratings"]["names"] == list("12345")
    assert sorted(found["shares"]["categories"]["names"]) == ["Comedy", "g0", "g1", "g2"]
    assert not any(told["categories"]["moved"]) and any("column genre tells, with blanks" in one for one in found["remarks"])

    code, said, _ = run(*held, "--every", "week", "--category", "year")
    assert code == 3 and "Changed most of ratings" in said and "column year" in said
    assert "Moved: ratings since 1970-03-02" in said and "Changed most of categories" not in said
    code, _, said = run(*held, "--category", "genres")
    assert code == 2 and "no column 'genres'" in said and "genre, year" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "Name a run, or what is held against what"),
        (["--reference", "nothing"], "neither the folder nor the key"),
        (["--reference", "no.inter"], "There is no file"),
        (["--reference", "x", "--every", "hour"], "--every is day, week"),
    ],
)
def test_mistakes_are_told(run, words, told):
    code, _, said = run("drift", "check", *words)
    assert code == 2 and told in said


@pytest.mark.data
def test_real_files_of_recbole_are_looked_at_with_ratings_and_genres(run, data_folder):
    place = data_folder / "ml-100k" / "raw" / "ml-100k.inter.gz"
    held = ("--reference", f"{place}@1997-09-20..1998-02-01", "--current", f"{place}@1998-02-01..1998-05-01")
    code, said, _ = run("drift", *held, "--resamples", "50", "--json")
    found = json.loads(said)
    assert code in (0, 3) and found["shares"]["ratings"]["names"] == list("12345")
    assert len(found["shares"]["categories"]["names"]) == 18 and any("column class" in one for one in found["remarks"])
