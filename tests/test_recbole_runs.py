"""RecBole's models in RecBole's own environment: trained, killed, gone on with, and ranked as RecBole ranks them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import atomic_files
from turborec.cli._options import DEFAULT_HOME
from turborec.data.store import sha256
from turborec.recbole import environment

HOME = Path(os.environ.get("TURBOREC_HOME", DEFAULT_HOME))
HERE = Path(__file__).parent

SMALL = ("load_col={inter: [user_id, item_id, timestamp]}", "train_batch_size=64", "eval_batch_size=64")
EXACT = "train_neg_sample_args=~"
"""What RecBole wants to be told beside an exact loss."""

RUNS = {
    *("bpr", "cdae", "convncf", "dgcf", "diffrec", "dmf", "enmf", "fism", "gcmc", "ldiffrec", "lightgcn", "line", "macridvae"),
    *("multidae", "multivae", "nais", "nceplrec", "neumf", "ngcf", "nncf", "sgl", "simplex", "spectralcf"),
    *("bert4rec", "caser", "core", "fearec", "fossil", "fpmc", "gcsan", "gru4rec", "hgn", "hrm", "lightsans", "narm"),
    *("nextitnet", "npe", "repeatnet", "sasrec", "shan", "sine", "srgnn", "stamp", "transrec"),
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def python():
    return environment.ready(HOME)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return atomic_files.write(tmp_path_factory.mktemp("recbole"))


def begun(place, *words, **environment):
    """`turborec recbole …`, under way."""
    given = {**os.environ, "OMP_NUM_THREADS": "1", "TURBOREC_HOME": str(HOME), **environment}
    command = [sys.executable, "-m", "turborec", "recbole", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=given, cwd=place)


def done(place, *words, code=0, **environment):
    """Its standard output, at its end."""
    process = begun(place, *words, **environment)
    out, said = process.communicate(timeout=1500)
    assert process.returncode == code, said + out
    return out if not code else said + out


def train(place, model, *words, **how):
    settings = [*SMALL, *([EXACT] if model in ("SASRec", "BERT4Rec", "GRU4Rec") else [])]
    return done(place, "train", model, *settings, *words, "--dataset", "small", "--data", place, "--json", **how)


def outcome(run):
    """Hashes of the last checkpoint's tensors, and all records, times aside."""
    last = max((run / "checkpoints").glob("step_??????"))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    plain = [{name: value for name, value in record.items() if name != "time"} for record in records]
    return {path.name: sha256(path) for path in sorted(last.glob("*.safetensors"))}, plain


def steps_done(run):
    log = run / "metrics.jsonl"
    return log.read_bytes().count(b'"kind": "train"') if log.exists() else 0


def when(run, process, steps):
    deadline = time.monotonic() + 300
    while steps_done(run) < steps and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert steps_done(run) >= steps, process.communicate()[1]


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_a_model_learns_and_two_processes_find_what_one_finds(place, python, model):
    words = ("epochs=6", "stopping_step=20", "learning_rate=0.02")
    one, two = (
        json.loads(train(place, model, *words, "--processes", n, "--out", place / f"{model}-{n}"))["results"] for n in (1, 2)
    )
    losses = [[r["loss"] for r in outcome(place / f"{model}-{n}")[1] if r["kind"] == "train"] for n in (1, 2)]
    assert len(losses[0]) == len(losses[1]) and losses[0][-1] < 0.9 * losses[0][0]
    assert losses[0][:10] == pytest.approx(losses[1][:10], rel=1e-3)  # later the order of float32 sums has grown
    for part in ("validation", "test"):
        assert one[part]["counts"] == two[part]["counts"] == ("kept" if model == "SASRec" else "masked")
        for history in ("masked", "kept"):
            assert one[part][history] == pytest.approx(two[part][history], abs=0.03)
    # The same weights are ranked alike, to the digit, by any number of processes.
    again = done(place, "train", "--resume", place / f"{model}-1", "--processes", 2, "--json")
    assert json.loads(again)["results"] == one


def test_killed_and_resumed_equals_never_stopped(place, python):
    words = ("epochs=4", "train_batch_size=16", "--out")
    train(place, "SASRec", *words, place / "whole")
    for processes, number in ((1, signal.SIGKILL), (1, signal.SIGTERM)):
        run = place / f"ended-by-{number.name}"
        arguments = ("train", "SASRec", *SMALL, EXACT, *words[:2], "--dataset", "small", "--data", place, "--out", run)
        process = begun(place, *arguments, "--processes", processes)
        when(run, process, 25)
        process.send_signal(number)
        said = process.communicate(timeout=300)[1]
        assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 75), said
        done(place, "train", "--resume", run)
        assert outcome(run) == outcome(place / "whole")
    said = train(place, "SASRec", "epochs=5", "--out", place / "whole", code=2)
    assert "holds a run of another job" in said


def test_two_processes_are_stopped_and_one_goes_on(place, python):
    run, words = place / "two", ("epochs=4", "train_batch_size=16", "--dataset", "small", "--data", place)
    process = begun(place, "train", "BPR", *SMALL, *words, "--out", run, "--processes", 2)
    when(run, process, 25)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 75 and "recbole train --resume" in said and "Traceback" not in said, said
    done(place, "train", "--resume", run)
    train(place, "BPR", *words[:2], "--out", place / "one")
    losses = [[r["loss"] for r in outcome(some)[1] if r["kind"] == "train"] for some in (run, place / "one")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_one_two_and_three_processes_agree(place, python, tmp_path):
    found = []
    for processes in (1, 2, 3):
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [python, *words, HERE / "recbole_shares.py", place, tmp_path / str(processes)]
        given = {**environment.surroundings(HOME), "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, env=given, capture_output=True, text=True, timeout=900, check=False)
        assert not ended.returncode, ended.stderr
        found.append(load_file(tmp_path / str(processes)))
    one, *others = found
    for other in others:
        assert one.keys() == other.keys() and len(one) > 150
        for name, value in one.items():
            if "/gradient/" in name:
                assert (value - other[name]).norm() <= 1e-5 * max(1e-3, float(value.norm())), name
            if name.endswith("losses"):
                assert other[name].tolist() == pytest.approx(value.tolist(), rel=1e-5), name
            if name.endswith("ranks"):
                assert torch.equal(value, other[name]), name


HELD_OUT = """
import json
from turborec.recbole.job import Job, Ranking, checked
from turborec.recbole.training import assembled
for scaled in (True, False):
    found = []
    for times in ("exact", "float32"):
        settings = ("train_neg_sample_args=~", f"normalize_all={scaled}", "load_col={inter: [user_id, item_id, timestamp]}")
        job = Job(model="SASRec", settings=settings, ranking=Ranking(times=times), device="cpu")
        with assembled(checked(job)) as run:
            events = run.parts["test"].loader._dataset.inter_feat
            found.append(dict(zip(events["user_id"].tolist(), events["item_id"].tolist())))
    print(sum(found[0][user] != found[1][user] for user in found[0]), len(found[0]))
"""


def test_how_many_test_items_float32_changes(python):
    """RecBole scales all numbers to 0..1 by default, which spares most of them; the page says how many."""
    given = {**environment.surroundings(HOME), "OMP_NUM_THREADS": "1"}
    command = [python, "-W", "ignore", "-c", HELD_OUT]
    said = subprocess.run(command, env=given, capture_output=True, text=True, timeout=900, check=True).stdout
    assert [line.split() for line in said.splitlines()] == [["4", "943"], ["149", "943"]]


HISTORIES = """
import json, sys
from turborec.recbole.job import Job, Ranking, checked
from turborec.recbole.training import assembled
found = []
for times in ("exact", "float32"):
    ranking = Ranking(times=times)
    settings = ("load_col={inter: [user_id, item_id, timestamp]}", "train_neg_sample_args=~", "MAX_ITEM_LIST_LENGTH=4")
    job = Job(model="SASRec", dataset="small", data=sys.argv[1], settings=settings, ranking=ranking, device="cpu")
    with assembled(checked(job)) as run:
        store, dataset = run.parts["test"].store, run.train.loader._dataset
        tokens = dataset.field2id_token["item_id"]
        users = dataset.field2id_token["user_id"][run.parts["test"].loader._dataset.inter_feat["user_id"].numpy()]
        ends = store.histories.offsets
        lists = [tokens[store.histories.items[lo:hi]].tolist() for lo, hi in zip(ends, ends[1:])]
        found.append(dict(zip(users.tolist(), lists)))
print(json.dumps(found))
"""


def test_histories_are_in_the_order_of_the_file_s_times(place, python):
    """All of a user's events, however few of them a row shows, by time and then by place in the file."""
    wanted: dict[str, list[tuple[int, str]]] = {}
    for line in (place / "small" / "small.inter").read_text().splitlines()[1:]:
        user, item, _, when = line.split("\t")
        wanted.setdefault(user, []).append((int(when), item))
    ordered = {user: [item for _, item in sorted(events, key=lambda event: event[0])] for user, events in wanted.items()}
    command = [python, "-W", "ignore", "-c", HISTORIES, place]
    given = {**environment.surroundings(HOME), "OMP_NUM_THREADS": "1"}
    said = subprocess.run(command, env=given, capture_output=True, text=True, timeout=300, check=True).stdout
    exact, rounded = json.loads(said)
    assert exact == ordered
    assert rounded != ordered and {u: sorted(items) for u, items in rounded.items()} == {
        u: sorted(i) for u, i in ordered.items()
    }


def test_a_model_of_whose_loss_there_are_no_shares_is_refused_in_several_processes(place, python):
    said = train(place, "SGL", "epochs=1", "--processes", 2, "--out", place / "coupled", code=2)
    assert "no mean over the rows of a batch" in said and "Traceback" not in said


SPLITS = {
    "leave one out": ("eval_args={split: {LS: valid_and_test}, order: TO, mode: full}",),
    "ratio": ("eval_args={split: {RS: [0.8, 0.1, 0.1]}, order: TO, group_by: user, mode: full}",),
    "random": ("eval_args={split: {RS: [0.7, 0.1, 0.2]}, order: RO, group_by: none, mode: full}",),
    "test only": ("eval_args={split: {LS: test_only}, order: TO, mode: full}", "topk=[1, 5]", "valid_metric=NDCG@5"),
}


@pytest.mark.parametrize(
    ("model", "split"),
    [(m, s) for m in ("SASRec", "BPR", "LightGCN") for s in SPLITS if (m, s) != ("SASRec", "random")],
)
def test_recbole_s_own_values_for_every_split(place, python, model, split):
    more = [EXACT] if model == "SASRec" else []
    words = [*SMALL, *more, *SPLITS[split], "metrics=[Recall, MRR, NDCG, Hit, Precision, MAP]"]
    found = json.loads(done(place, "check", model, *words, "--dataset", "small", "--data", place, "--json"))
    assert found["recbole"] == found["parity"] and not found["differing"]
    assert found["recbole"].keys() == ({"test"} if split == "test only" else {"validation", "test"})


def test_recbole_s_place_for_equal_scores(place, python, tmp_path):
    """Of weights that are all zero every score is the same, and the lists are what torch.topk makes of that."""
    atomic = (place / "small" / "small.inter").read_text().splitlines()[1:]
    users, items = ({line.split("\t")[column] for line in atomic} for column in (0, 1))
    sizes = {"user_embedding.weight": len(users) + 1, "item_embedding.weight": len(items) + 1}
    torch.save({"state_dict": {name: torch.zeros(rows, 64) for name, rows in sizes.items()}}, tmp_path / "zero.pth")
    words = ("BPR", *SMALL, "--dataset", "small", "--data", place, "--weights", tmp_path / "zero.pth", "--json")
    found = json.loads(done(place, "check", *words))
    assert found["recbole"] == found["parity"] != found["exact"]


@pytest.mark.parametrize("model", ["GRU4Rec", "BERT4Rec"])
def test_a_checkpoint_of_recbole_s_trainer(place, python, tmp_path, model):
    own = atomic_files.write(tmp_path)
    given = {**environment.surroundings(HOME), "OMP_NUM_THREADS": "1"}
    command = [python, "-W", "ignore", HERE / "recbole_trainer.py", model, own]
    said = subprocess.run(command, env=given, cwd=own, capture_output=True, text=True, timeout=600, check=True).stdout
    words = (model, *SMALL, EXACT, "--dataset", "small", "--data", own, "--weights", own / f"{model}.pth", "--json")
    found = json.loads(done(place, "check", *words))
    assert found["recbole"] == found["parity"] and found["recbole"]["test"] == json.loads(said.splitlines()[-1])


STEPS = {"SASRec": 4, "BERT4Rec": 4, "GRU4Rec": 12, "LightGCN": 20, "BPR": 39}


@pytest.mark.parametrize("model", STEPS)
def test_recbole_s_values_on_ml_100k(tmp_path, python, model):
    """RecBole's package brings these data along; its defaults, but for fewer steps."""
    settings = [EXACT] if model in ("SASRec", "BERT4Rec", "GRU4Rec") else []
    done(tmp_path, "train", model, *settings, "epochs=1", "--steps", STEPS[model], "--out", "run")
    found = json.loads(done(tmp_path, "check", "--weights", "run", "--json"))
    assert found["recbole"] == found["parity"] and not found["differing"]
    assert len(found["recbole"]["test"]) == 5 and all(value > 0 for value in found["recbole"]["test"].values())


def test_recbole_s_classes(place, python):
    given = {**environment.surroundings(HOME), "OMP_NUM_THREADS": "1"}
    command = [python, "-W", "ignore", HERE / "recbole_classes.py", place]
    said = subprocess.run(command, env=given, cwd=place, capture_output=True, text=True, timeout=900, check=True).stdout
    found = json.loads(said)
    assert {name for name, why in found.items() if why == "runs"} == RUNS
    told = ("RecBole refuses", "counted, not trained", "procedure of its own", "ranks the whole catalogue")
    assert all(any(words in why for words in told) for why in found.values() if why != "runs")


def test_an_environment_that_was_not_finished_is_made_anew(tmp_path):
    process = begun(tmp_path, "setup", "--home", tmp_path / "home")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("home/recbole/*.part/bin/python")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.communicate()
    found = Path(done(tmp_path, "setup", "--home", tmp_path / "home").split()[-1])
    assert found.is_file() and not list(tmp_path.glob("home/recbole/*.part"))
    asked = "import recbole, numpy, turborec.recbole.training; print(recbole.__version__, numpy.__version__)"
    given = environment.surroundings(tmp_path / "home")
    said = subprocess.run([found, "-c", asked], env=given, capture_output=True, text=True, check=True, timeout=120).stdout
    assert said.split() == ["1.2.1", "1.26.4"]
