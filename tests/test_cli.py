import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from stores import store_of
from turborec.errors import UserError

RECIPE = """\
data: {source: {kind: online_retail}}
batches: {max_length: 12, tokens: 192}
model: {kind: sasrec, width: 16, hidden: 32}
train: {epochs: 1}
"""


@pytest.fixture
def place(tmp_path):
    generator = np.random.default_rng(0)
    store_of(tmp_path / "store", [generator.integers(1, 31, generator.integers(3, 20)).tolist() for _ in range(25)], items=30)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "done").mkdir()
    return tmp_path


def test_the_main_job_from_recipe_to_recommendations(run, place):
    code, said, _ = run("train", "recipe.yaml", "--store", "store", "--out", "out")
    assert code == 0
    assert "sasrec" in said and "markov" in said and "popularity" in said
    assert said.rstrip().endswith("The run is in out")
    code, said, _ = run("evaluate", "out", "--store", "store", "--json")
    written = json.loads((place / "out" / "evaluation" / "test" / "sasrec" / "result.json").read_text())
    assert json.loads(said)["sasrec"] == {key: written["values"][key] for key in ("masked", "kept")}
    code, said, _ = run("recommend", "out", "--store", "store", "--k", "3", "--out", "recs.csv")
    lines = (place / "recs.csv").read_text().splitlines()
    assert code == 0 and len(lines) == 1 + 25 * 3
    assert json.loads((place / "out" / "status.json").read_text())["state"] == "finished"


def test_runs_are_compared_and_reported(run, place):
    for seed in (1, 2):
        code, said, _ = run("train", "recipe.yaml", f"seed={seed}", "--store", "store", "--out", f"s{seed}", "--json")
        assert code == 0 and set(json.loads(said)["results"]) == {"sasrec", "markov", "popularity"}
        assert (place / f"s{seed}" / "report.html").read_text().startswith("<!doctype html>")
    code, said, _ = run("compare", "s1/markov", "s1", "s2", "--page", "page.html")
    assert code == 0 and "s1 (2 seeds)" in said and "Holm" in said and said.rstrip().endswith("The page is page.html")
    assert "Compared with" in (place / "page.html").read_text()
    code, said, _ = run("compare", "s1", "s2", "--metric", "mrr", "--history", "kept", "--json")
    found = json.loads(said)
    assert [one["metric"] for one in found["differences"]] == ["mrr"] and found["history"] == "kept"
    (place / "s1" / "report.html").unlink()
    code, said, _ = run("report", "s1", "--store", "store", "--out", "elsewhere/a.html")
    assert code == 0 and said.strip() == "elsewhere/a.html"
    page = (place / "elsewhere" / "a.html").read_text()
    assert "item-0000" in page and not (place / "s1" / "report.html").exists()


def test_a_report_without_the_store_says_what_is_missing(run, place):
    run("train", "recipe.yaml", "--store", "store", "--out", "out")
    (place / "store" / "card.json").unlink()
    code, _, _ = run("report", "out")
    assert code == 0 and "not a prepared store" in (place / "out" / "report.html").read_text()


def test_a_report_that_fails_is_a_warning_and_the_run_is_finished(run, place, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, said, complained = run("train", "recipe.yaml", "--store", "store", "--out", "out")
    assert code == 0 and "sasrec" in said and "The report is" not in said
    assert "The report was not written" in complained and "`turborec report out` tries again" in complained
    assert json.loads((place / "out" / "status.json").read_text())["state"] == "finished"


def test_without_a_folder_runs_are_numbered(run, place):
    for number in (1, 2):
        assert run("train", "recipe.yaml", "--store", "store", "--debug")[1].rstrip().endswith(f"runs/recipe-{number}")


def test_dry_prints_a_recipe_that_loads_to_itself_and_does_nothing(run, place):
    code, said, _ = run("train", "recipe.yaml", "seed=7", "--dry")
    (place / "resolved.yaml").write_text(said)
    assert code == 0 and "seed: 7" in said and not (place / "runs").exists()
    assert run("train", "resolved.yaml", "--dry")[1] == said


MISTAKES = {
    "nothing named": (["train"], "Name a recipe to train"),
    "unknown recipe": (["train", "ml-1m/sasrek"], "did you mean 'ml-1m/sasrec'"),
    "unknown key": (["train", "ml-1m/sasrec", "model.widht=3"], "model.widht: no such key (did you mean 'width'?)"),
    "no override": (["train", "ml-1m/sasrec", "width"], "An override reads a.b=value"),
    "no run": (["evaluate", "store"], "not a run folder"),
    "wrong part": (["evaluate", ".", "--part", "train"], "test or validation"),
    "no device": (["train", "recipe.yaml", "--store", "store", "--device", "banana"], "'banana' cannot be used"),
    "no folder": (["data", "export", "store", "--out", "recipe.yaml/events.csv"], "Not a directory"),
    "parts of a table": (["data", "export", "store", "--out", "e.csv", "--parts"], "--parts goes with --format recbole"),
    "seed too large": (["train", "recipe.yaml", "seed=99999999999999999999"], "seed: expected"),
    "no users file": (["recommend", "done", "--store", "store", "--users", "nobody.txt"], "not a run folder"),
    "no store": (["data", "describe", "."], "not a prepared store"),
    "nothing to compare": (["compare", "done"], "at least two contestants"),
    "no run to compare": (["compare", "done", "store"], "neither a run folder"),
    "no run to report": (["report", "done"], "not a run folder"),
    "no such history": (["compare", "a", "b", "--history", "hidden"], "The history is masked or kept, got 'hidden'"),
    "unknown tracker": (["train", "recipe.yaml", "--store", "store", "--track", "wandbb"], "did you mean 'wandb'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_paragraph_and_exit_code_2(run, place, name):
    arguments, expected = MISTAKES[name]
    code, _, said = run(*arguments)
    assert code == 2 and expected in said
    assert said.startswith("turborec: ") and "Traceback" not in said


def test_a_damaged_store_is_refused(run, place):
    items = place / "store" / "items.npy"
    content = bytearray(items.read_bytes())
    content[-3] ^= 1
    items.write_bytes(content)
    assert run("data", "verify", "store")[0] == 2
    code, _, said = run("train", "recipe.yaml", "--store", "store")
    assert code == 2 and "items.npy has SHA-256" in said


def test_the_feature_tables_of_a_store_are_described(run, tmp_path):
    case = Path(__file__).parent / "fixtures" / "mmrec" / "toy"
    data = {"source": {"kind": "mmrec", "name": "toy"}, "split": {"kind": "labelled"}}
    (tmp_path / "toy.yaml").write_text(json.dumps({"data": data, "model": {"kind": "popularity"}}))
    code, said, _ = run("data", "describe", "toy.yaml", "--raw", case)
    assert code == 0
    assert json.loads(said)["features"] == {
        "image": {"files": ["image_feat.npy"], "width": 4, "items": 7, "skipped": 0},
        "text": {"files": ["text_feat.npy"], "width": 3, "items": 7, "skipped": 0},
    }
    assert re.search(r"^data\.features +a mapping of keys to values", run("recipe", "keys")[1], re.MULTILINE)


def test_recipes_and_sources_are_listed(run):
    assert "ml-1m/sasrec" in run("recipe", "list")[1]
    assert "max_length: 200" in run("recipe", "show", "ml-1m/sasrec")[1]
    assert "movielens" in run("data", "list")[1]


def test_an_export_holds_every_event(run, place):
    code, said, _ = run("data", "export", "store", "--out", "events.tsv")
    lines = (place / "events.tsv").read_text().splitlines()
    assert code == 0 and f"{len(lines) - 1:,} events" in said
    assert {line.split("\t")[3].strip('"') for line in lines[1:]} == {"train", "validation", "test"}


def test_an_export_for_recbole_says_how_to_read_it_again(run, place):
    code, said, _ = run("data", "export", "store", "--out", "shop", "--format", "recbole", "--parts")
    lines = sum(len(path.read_text().splitlines()) - 1 for path in (place / "shop").glob("shop.*.inter"))
    assert code == 0 and f"{lines:,} events" in said
    expected = "{kind: recbole, name: shop, order: position, benchmark_filename: [train, valid, test]}"
    assert expected in " ".join(said.split())


def test_a_start_that_fails_leaves_no_folder_behind(run, place):
    assert run("train", "recipe.yaml", "--store", "nowhere")[0] == 2
    assert not any((place / "runs").iterdir())
    (place / "kept").mkdir()
    assert run("train", "recipe.yaml", "--store", "nowhere", "--out", "kept")[0] == 2
    assert (place / "kept").is_dir()


def test_stores_are_listed_with_their_files_and_dates(run, place):
    (place / "events.csv").write_text("user,item,time\n" + "".join(f"u{n % 4},i{n % 5},{n}\n" for n in range(20)))
    (place / "table.yaml").write_text(
        "data: {source: {kind: table, events: events.csv, user: user, item: item, time: time}}\nmodel: {kind: markov}\n"
    )
    assert run("data", "prepare", "table.yaml")[0] == 0
    said = run("data", "list")[1]
    assert "table (events.csv): 4 users, 5 items, 20 events" in said and "20" in said


@pytest.mark.parametrize(
    "arguments",
    [[], ["train"], ["evaluate"], ["recommend"], ["compare"], ["report"], ["data"], ["data", "prepare"], ["recipe"]],
)
def test_help_reads(run, arguments):
    code, said, _ = run(*arguments, "--help")
    assert code == 0 and "Usage" in said


def test_a_start_that_failed_may_be_mended_in_the_same_folder(run, place):
    code, _, said = run("train", "recipe.yaml", "--store", "nowhere", "--out", "out")
    assert code == 2 and "nowhere" in said
    assert run("train", "recipe.yaml", "seed=4", "--store", "store", "--out", "out")[0] == 0
    assert "another recipe" in run("train", "recipe.yaml", "--store", "store", "--out", "out")[2]


def test_a_folder_with_somebodys_notes_stays(run, place, monkeypatch):
    from turborec import stores

    def fail(*_):
        (place / "runs" / "recipe-1" / "notes.txt").write_text("mine")
        raise UserError("no data")

    monkeypatch.setattr(stores, "of_recipe", fail)
    assert run("train", "recipe.yaml")[0] == 2
    assert (place / "runs" / "recipe-1" / "notes.txt").read_text() == "mine"


def test_a_trial_never_spoils_a_run_that_is_there(run, place):
    run("train", "recipe.yaml", "--store", "store", "--out", "out")
    code, _, said = run("train", "--resume", "out", "--debug")
    assert code == 2 and "--debug" in said


def test_users_without_a_known_event_are_named(run, place):
    run("train", "recipe.yaml", "--store", "store", "--out", "out")
    _, said, _ = run("recommend", "out", "--users", "stranger", "--out", "new/recs.tsv")
    assert "1 user, such as 'stranger'" in said
    header, first, *_ = (place / "new" / "recs.tsv").read_text().splitlines()
    assert header == "user\trank\titem\tscore\treason" and first.startswith("stranger\t1\t")


@pytest.mark.parametrize("user", ["", "a\udcff", "x" * 300])
def test_odd_users_on_the_command_line_end_in_words(run, place, user):
    run("train", "recipe.yaml", "--store", "store", "--out", "out")
    code, _, said = run("recommend", "out", "--users", user)
    assert (code, said) == (0, "") if user.startswith("x") else (code == 2 and "user's id" in said)


def test_what_is_too_large_for_the_machine_is_told_in_words(run, place):
    code, _, said = run("train", "recipe.yaml", "--store", "store", "model.width=1000000000")
    assert code == 2 and "not enough memory" in said


def test_a_card_that_was_changed_is_no_card(run, place):
    (place / "events.csv").write_text("user,item,time\n" + "".join(f"u{n % 4},i{n % 5},{n + 10**9}\n" for n in range(20)))
    (place / "table.yaml").write_text(
        "data: {source: {kind: table, events: events.csv, user: user, item: item, time: time}}\nmodel: {kind: markov}\n"
    )
    folder = Path(run("data", "prepare", "table.yaml")[1].strip())
    card = (folder / "card.json").read_text()
    (folder / "card.json").write_text(card.replace('"items": 5', '"items": 4'))
    code, _, said = run("data", "verify", folder)
    assert code == 2 and "card.json is not what was written" in said
    assert "damaged" in run("data", "list")[1]


def test_a_recipe_is_planned_measured_and_profiled_without_training_it(run, place):
    code, said, _ = run("plan", "recipe.yaml", "--store", "store", "--json")
    assert code == 0 and json.loads(said)["sizes"]["parameters"]["body"] > 0
    code, said, _ = run("plan", "recipe.yaml", "--store", "store")
    assert code == 0 and "in tables" in said and "for all 1 epochs" in said
    quick = (
        "--rounds",
        "1",
        "--seconds",
        "0",
        "--levers",
        "bucketing",
        "--against",
        "eager",
        "--out",
        "bench.json",
        "--page",
        "bench.html",
    )
    code, said, _ = run("bench", "recipe.yaml", "--store", "store", *quick)
    assert code == 0 and "eager" in said and "GFLOP/s" in said
    assert json.loads((place / "bench.json").read_text())["levers"][0]["name"] == "bucketing"
    assert "of the positions filled" in (place / "bench.html").read_text()
    files = ("--trace", "trace.json", "--page", "profile.html")
    code, said, _ = run("profile", "recipe.yaml", "--store", "store", "--steps", "2", *files)
    assert "held at most: " in said and "MiB held by the steps" in (place / "profile.html").read_text()
    assert code == 0 and "TiledCrossEntropy" in said and (place / "trace.json").is_file()


PHASES = """\
phases:
  - {name: first, recipe: recipe.yaml, at_least: {ndcg@10: 0.0}}
  - {name: second, recipe: recipe.yaml, overrides: [seed=2]}
"""


@pytest.mark.parametrize("kind", ["slurm", "script", "runpod"])
def test_what_a_job_can_be_asked_is_listed(run, kind):
    code, said, _ = run("launch", kind, "--keys")
    assert code == 0 and "allocator" in said


def test_a_job_that_prepares_its_data_is_two_scripts(run, place):
    words = ("--prepare", "--job", "prepare.partition=cpu", "recipe.yaml", "seed=2", "--raw", "raw data", "--out", "runs/x")
    code, said, _ = run("launch", "slurm", "--preset", "4xh100", *words, "--script", "job.sh")
    assert code == 0 and said == (
        "sbatch --dependency=afterok:$(sbatch --parsable job-prepare.sh) --kill-on-invalid-dep=yes job.sh\n"
    )
    first, second = (place / "job-prepare.sh").read_text(), (place / "job.sh").read_text()
    assert "#SBATCH --partition=cpu" in first and "gpus" not in first and "words=(recipe.yaml seed=2 '--raw=raw data')" in first
    assert "words=(recipe.yaml seed=2 --raw 'raw data')" in second and "expandable_segments:True" in second
    code, _, said = run("launch", "slurm", *words)
    assert code == 2 and "--script" in said


def test_a_script_carries_a_file_of_the_users_own(run, place):
    (place / "phases.yaml").write_text(PHASES)
    code, said, _ = run("launch", "script", "recipe.yaml", "seed=2", "--debug", "--out", "runs/x")
    assert code == 0 and RECIPE in said and "words=(runs/x.yaml seed=2 --debug)" in said
    assert "data prepare runs/x.yaml seed=2\n" in said
    code, said, _ = run("launch", "script", "--phases", "phases.yaml", "--out", "runs/x", "--job", "processes=2")
    assert (
        code == 0
        and said.count(RECIPE) == 2
        and "recipe: runs/x.second.yaml" in said
        and "launch phases --restarts 3 --processes 2" in said
        and "prepare" not in said
    )
    code, said, _ = run("launch", "script", "ml-1m/sasrec", "--out", "runs/x")
    assert code == 0 and "END_OF_FILE" not in said


def test_a_pod_is_for_a_trial_or_meant(run, place):
    words = ("launch", "runpod", "ml-1m/sasrec", "--out", "runs/x", "--job", "image=me/turborec:1")
    code, _, said = run(*words)
    assert code == 2 and "--debug" in said and "--production" in said
    assert "out=runs/x-debug\nwords=(ml-1m/sasrec --debug)" in run(*words, "--debug")[1]
    assert "out=runs/x\nwords=(ml-1m/sasrec)" in run(*words, "--production")[1]
    body = json.loads(run(*words, "--production", "--request", "--preset", "4xh100")[1])
    assert body["gpuCount"] == 4 and "launch local --processes 4" in body["dockerStartCmd"][0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("slurm", "ml-1m/sasrec"), "--out"),
        (("slurm", "ml-1m/sasrek", "--out", "x"), "did you mean 'ml-1m/sasrec'"),
        (("slurm", "ml-1m/sasrec", "--out", "x", "--preset", "4xh10"), "did you mean '4xh100'"),
        (("script", "ml-1m/sasrec", "--out", "x", "--job", "restart=1"), "restarts"),
        (("script", "--phases", "ml-1m", "--out", "x"), "no phases called 'ml-1m'"),
        (("phases", "ml-1m-then-ml-20m"), "--out"),
        (("phases", "ml-1m-then-ml-20m", "seed=2", "--out", "x"), "stand in the file"),
        (("phases", "ml-1m-then-ml-20m", "--store", "store", "--out", "x"), "--store"),
    ],
)
def test_what_cannot_be_launched_is_told(run, words, told):
    code, _, said = run("launch", *words)
    assert code == 2 and told in said


def test_a_file_is_fetched_and_checked(run, place):
    (place / "there.csv").write_bytes(b"user,item\n")
    sha256 = hashlib.sha256(b"user,item\n").hexdigest().upper()
    address = (place / "there.csv").as_uri()
    code, said, _ = run("data", "fetch", address, "--sha256", sha256, "--out", "data", "--name", "shop/events.csv")
    assert code == 0 and said == "data/shop/events.csv\n" and (place / said.strip()).read_bytes() == b"user,item\n"
    for nothing in ("", "0" * 63):
        code, _, said = run("data", "fetch", address, "--sha256", nothing, "--out", "other")
        assert code == 2 and "64 hexadecimal digits" in said
    code, _, said = run("data", "fetch", address, "--sha256", "0" * 64, "--out", "other")
    assert code == 2 and "gave another file" in said
