"""The benchmarks beside other libraries: jobs, clocks and rows, without any of these libraries."""

import json
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

from turborec import recipes

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers"
sys.path.append(str(PEERS))
jobs, measuring, run = (import_module(name) for name in ("jobs", "measuring", "run"))

PROVENANCE = {"versions": {"turborec": "0.1.0", "torch": "2.13.0"}, "threads": 1}


def answer(cpu, wall, **others):
    return {
        "targets_per_cpu_second": cpu,
        "targets_per_second": wall,
        "evaluation_cpu_seconds": 100 / cpu,
        "evaluation_seconds": 100 / wall,
        "peak_mib": 500,
        "evaluation": "full",
        "part_of_an_epoch": True,
        "versions": {"torch": "2.12.0", "recbole": "1.2.1"},
        "curve": [],
    } | others


def case(variant="default"):
    return jobs.Case("ml-1m/sasrec", variant, {"history": "masked"}, seed=1)


@pytest.mark.parametrize("model", run.MODELS)
@pytest.mark.parametrize("peer", jobs.PEERS)
def test_a_peer_is_given_the_recipe_s_shape(model, peer):
    recipe = recipes.load(f"ml-1m/{model}")
    job = measuring.Job(**jobs.peer_job(recipe, peer, "ml-1m", "events.csv", {"threads": 2, "epochs": 0}, "float32"))
    assert (job.width, job.hidden, job.layers, job.max_length) == (64, recipe.model.hidden, recipe.model.layers, 200)
    assert job.dropout == recipe.model.dropout and job.threads == 2 and job.loss == "softmax"
    assert job.mask_share == (0.4 if model == "bert4rec" else 0.0)


def test_a_sampled_softmax_is_asked_for_with_its_negatives():
    job = jobs.peer_job(recipes.load("amazon-beauty-2014/sasrec"), "replay", "amazon-beauty-2014", "events.csv", {}, "float32")
    assert (job["loss"], job["negatives"]) == ("sampled_softmax", 512)


def test_a_job_is_plain_data():
    job = jobs.peer_job(recipes.load("ml-1m/sasrec"), "recbole", "ml-1m", "events.csv", {}, "float32")
    assert json.loads(json.dumps(job)) == job
    assert job.keys() <= {f.name for f in fields(measuring.Job)}


def test_steps_of_the_warm_up_are_not_counted():
    meter = measuring.Meter(seconds=0.0, warm_up=2)
    assert [meter.step(rows=4, targets=100) for _ in range(2)] == [False, False]
    assert [meter.step(rows=4, targets=10) for _ in range(2)] == [False, True]  # one step alone says little
    meter.pause()
    found = meter.rates(epoch_rows=80)
    assert (found["steps"], found["targets"], found["epoch_targets"]) == (2, 20, 200)
    assert found["part_of_an_epoch"] and found["epoch_seconds"] == pytest.approx(10 * found["wall_seconds"])


def test_a_meter_leaves_out_pauses():
    meter = measuring.Meter(seconds=0.0, warm_up=1)
    meter.step(1, 1)
    meter.pause()
    before = meter.watch.wall
    assert meter.watch.wall == before
    meter.resume()
    assert meter.watch.wall > before


def test_ndcg_counts_ranks_up_to_ten():
    assert measuring.ndcg([1, 3, 11], users=4) == pytest.approx((1 + 0.5) / 4)


def test_ratios_are_medians_of_rounds_and_greater_where_turborec_is_better():
    ours = [answer(cpu, 2 * cpu) for cpu in (10, 30, 90)]
    theirs = [answer(5, 5) for _ in range(3)]
    own, peer = jobs.speed_rows(case(), "recbole", ours, theirs, PROVENANCE)
    assert own["values"]["targets_per_second_vs_recbole"] == 6  # of 2, 6, 18
    assert own["values"]["targets_per_second_vs_recbole_by_wall"] == 12
    assert own["values"]["evaluation_vs_recbole"] == pytest.approx(6)
    assert own["intervals"]["targets_per_second_vs_recbole"] == [2, 18]
    assert peer["values"]["targets_per_cpu_second"] == 5 and not [name for name in peer["values"] if "_vs_" in name]
    assert (own["variant"], peer["variant"]) == ("default", "recbole 1.2.1")
    assert peer["provenance"]["versions"] == {"turborec": "0.1.0", "torch": "2.12.0", "recbole": "1.2.1"}
    assert all(isinstance(value, float) for row in (own, peer) for value in row["values"].values())


def test_quality_is_what_the_peer_comes_to():
    def curve(*values):
        return [
            {"epoch": n, "ndcg@10": v, "training_seconds": 10.0 * n, "training_cpu_seconds": 9.0 * n}
            for n, v in enumerate(values, start=1)
        ]

    ours, theirs = answer(1, 1, curve=curve(0.1, 0.2)), answer(1, 1, curve=curve(0.05, 0.1, 0.1005))
    own, peer = jobs.quality_rows(case(), "recbole", ours, theirs, PROVENANCE)
    assert own["values"]["quality_cpu_seconds"] == 9 and peer["values"]["quality_cpu_seconds"] == 18
    assert own["values"]["quality_seconds_vs_recbole"] == 2 and own["values"]["ndcg@10"] == 0.2
    worse = answer(1, 1, curve=curve(0.01))
    own, _ = jobs.quality_rows(case(), "recbole", worse, theirs, PROVENANCE)
    assert own["values"] == {"ndcg@10": 0.01}


def test_a_file_is_named_by_what_was_changed():
    assert case().file("replay") == "ml-1m-sasrec-replay"
    assert case("max_length=50, 2 threads").file("replay") == "ml-1m-sasrec-replay-max_length-50-2-threads"


def test_places_count_the_events_of_each_user(tmp_path):
    (tmp_path / "exported.csv").write_text('"user","item","time","part"\na,x,,train\na,"y,z",5,test\nb,x,,train\n')
    run.add_places(tmp_path / "exported.csv", tmp_path / "events.csv")
    assert (tmp_path / "events.csv").read_text().split() == [
        "user,item,place,part", "a,x,0,train", 'a,"y,z",1,test', "b,x,0,train",
    ]  # fmt: skip


@pytest.mark.parametrize("peer", jobs.PEERS)
def test_requirements_are_pinned(peer):
    lines = (PEERS / peer / "requirements.txt").read_text().splitlines()
    assert all(line.startswith("#") or line.count("==") == 1 for line in lines)
