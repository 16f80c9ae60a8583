"""A study on a tiny generated twin of Music4All: complete rows, divergence as a row, nothing trained twice, exact times."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

import pytest

from turborec import recipes, run, stores
from turborec.bench import guide, study
from turborec.bench.levers import changed
from turborec.engine import hardware
from turborec.errors import InterruptedRunError, UserError
from turborec.report.study_page import study_page

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
twin = import_module("music4all_twin")

WIDTHS = (("resnet", 6), ("lyrics_word2vec", 5), ("ivec256", 4))
SMALL = ["train.epochs=3", "batches.tokens=256", "model.width=8", "model.reduced={resnet: 4}", "stopping.patience_epochs=5"]
CPU = hardware.device_of("cpu")
HOT = "hot=train.optimizer.lr=1e30 train.precision=float16"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    twin.write(folder / "music4all", twin.Settings(users=40, tracks=40, interactions=600, widths=WIDTHS), "none")
    return folder


@pytest.fixture(scope="module")
def recipe():
    return recipes.load("music4all/mmgcn", SMALL)


@pytest.fixture(scope="module")
def store(place, recipe):
    return stores.of_recipe(recipe, stores.Places(place / "home", place / "music4all"))


PLAN = study.Plan(("batch-2x-sqrt", "every", "accumulate-2", "metrics", "amp"), (HOT, "same=train.clip_norm=null"))


def carried_out_here(command, said):
    """What a process of its own would do, without the seconds that it takes to begin."""
    with pytest.MonkeyPatch.context() as patched, said.open("a") as file, redirect_stdout(file):
        patched.setattr(sys, "argv", command[2:])
        try:
            run.main()
        except SystemExit as end:
            print(end.code)
            return 1
    return 0


@pytest.fixture(scope="module")
def found(recipe, store, place):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(study, "_carried_out", carried_out_here)
        return {"recipe": "music4all/mmgcn", **study.run(recipe, store, PLAN, place / "runs", "cpu")}


def rows_of(found):
    return {row["name"]: row for row in found["rows"]}


def variants(names, recipe, own=()):
    return {one.name: one for one in guide.variants(names, own, recipe, CPU)}


def test_every_training_has_a_complete_row(found):
    rows = rows_of(found)
    assert list(rows)[:5] == ["baseline", "batch-2x-sqrt", "every-3", "accumulate-2", "metrics"]
    for name in ("baseline", "batch-2x-sqrt", "every-3", "accumulate-2", "metrics"):
        row, values = rows[name], rows[name]["values"]
        assert row["state"] == "finished" and row["why"] is None
        for clock in ("seconds", "cpu_seconds"):
            assert values[f"training_{clock}"] > 0 and values[f"validation_{clock}"] > 0
            parts = 3 * values[f"validation_{clock}"] + values[f"training_{clock}"]
            assert parts < values[f"total_{clock}"] == pytest.approx(row["curve"][-1][["seconds", "cpu_seconds"].index(clock)])
        assert values["peak_mib"] > 50 and values["nonfinite_steps"] == 0 and values["epochs"] == 3
        assert 0 < values["recall@20"] <= 1 and 0 < values["ndcg@20"] <= 1
        assert values["validation"] == max(point[2] for point in row["curve"])
        result = json.loads((Path(row["runs"][0]["folder"]) / "evaluation/test/mmgcn/result.json").read_text())
        assert values["recall@20"] == result["values"]["masked"]["recall@20"]
    assert rows["baseline"]["values"]["steps"] == 2 * rows["batch-2x-sqrt"]["values"]["steps"]
    assert len(rows["baseline"]["curve"]) == 3 and len(rows["every-3"]["curve"]) == 1
    assert rows["baseline"]["values"]["recall@20"] == rows["metrics"]["values"]["recall@20"]
    assert found["data"]["users"] == 40 and found["terms"].startswith("Generated, not Music4All")


def test_what_diverges_is_a_row_with_its_count(found):
    row = rows_of(found)["hot"]
    assert row["state"] == "diverged" and row["values"]["nonfinite_steps"] == 1
    assert row["why"].startswith("The loss or its gradient is not finite")
    assert "recall@20" not in row["values"]
    assert row["values"]["quality_seconds"] is None


def test_what_is_not_trained_says_why(found):
    rows = rows_of(found)
    assert rows["float16"]["state"] == rows["same"]["state"] == "not trained"
    assert "float16 is never fast on a processor" in rows["float16"]["why"]
    assert rows["same"]["why"] == "the recipe is the same with it and without it"


def test_claims_are_told_with_what_was_measured(found):
    levers = {lever["name"]: lever for lever in found["levers"]}
    assert list(levers) == ["batch", "every", "metrics", "accumulate", "amp"]
    (accumulated,) = levers["accumulate"]["variants"]
    assert "x as fast, 1.5x claimed: " in accumulated["told"] and "0 steps with a loss" in accumulated["told"]
    assert all(lever["claim"] and lever["truth"] and lever["verdict"] for lever in found["levers"])
    assert levers["amp"]["variants"][1]["told"].startswith("not trained: float16")


def test_what_keeps_the_numbers_from_saying_more_is_told(found):
    seeds, short, *_ = found["cautions"]
    assert "one seed" in seeds and "less than 1 s" in short
    assert any("At their best when the epochs were over" in caution for caution in found["cautions"]) == any(
        row["values"].get("best_epoch") == 3 for row in found["rows"]
    )


def test_a_second_call_trains_nothing(found, recipe, store, place, monkeypatch):
    monkeypatch.setattr(study, "_carried_out", lambda *_: pytest.fail("trained again"))
    again = study.run(recipe, store, PLAN, place / "runs", "cpu")
    assert again["rows"] == found["rows"] and again["levers"] == found["levers"]


def test_a_folder_of_another_recipe_is_refused(found, recipe, store, place):
    other = changed(recipe, ("train.epochs=4",))
    with pytest.raises(UserError, match=r"another recipe or other data\. Give this study another --runs"):
        study.run(other, store, study.Plan(()), place / "runs", "cpu")


def test_a_training_that_was_stopped_is_gone_on_with(found, recipe, store, tmp_path, monkeypatch):
    """In its second epoch; the seconds before that count."""

    def stop(number, step, command):
        if step == 3:
            raise InterruptedRunError("stopped", 75)

    def stopped(command, said):
        with monkeypatch.context() as patched:
            patched.setattr("turborec.training.heed", stop)
            assert carried_out_here(command, said) == 1
        return 75

    monkeypatch.setattr(study, "_carried_out", stopped)
    with pytest.raises(InterruptedRunError):
        study.run(recipe, store, study.Plan(()), tmp_path, "cpu")
    monkeypatch.setattr(study, "_carried_out", carried_out_here)
    (row,) = study.run(recipe, store, study.Plan(()), tmp_path, "cpu")["rows"]
    assert row["state"] == "finished"
    assert [point[2] for point in row["curve"]] == [point[2] for point in rows_of(found)["baseline"]["curve"]]


def test_a_signal_is_handed_on_and_waited_for(tmp_path):
    program = (
        "import signal, sys, time\n"
        "def end(*_): time.sleep(0.3); print('saved'); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, end); print('ready', flush=True); time.sleep(60)\n"
    )

    def tell():
        while "ready" not in (tmp_path / "said").read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    (tmp_path / "said").touch()
    threading.Thread(target=tell).start()
    assert study._carried_out([sys.executable, "-c", program], tmp_path / "said") == 75
    assert (tmp_path / "said").read_text().endswith("saved\n")


def test_an_interrupted_training_interrupts_the_study(recipe, store, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "_carried_out", lambda command, said: 75)
    with pytest.raises(InterruptedRunError, match="The same command goes on") as caught:
        study.run(recipe, store, study.Plan(()), tmp_path, "cpu")
    assert caught.value.code == 75


def test_a_training_that_fails_is_a_row_and_the_others_go_on(recipe, store, tmp_path, monkeypatch):
    def fails(command, said):
        said.write_text("Traceback\nturborec: No space left.\n")
        return 2

    monkeypatch.setattr(study, "_carried_out", fails)
    found = {"recipe": "x", **study.run(recipe, store, study.Plan(("clip",)), tmp_path, "cpu")}
    assert [(row["state"], row["why"]) for row in found["rows"]] == [("failed", "turborec: No space left.")] * 2
    assert found["levers"][0]["held"] == "not measured"
    assert "No space left" in study_page(found)


def test_seeds_are_means_and_trained_in_turns(recipe, store, tmp_path, monkeypatch):
    order = []

    def planted(own, store, folder, device):
        order.append(folder.name)
        value = 0.1 * own.seed
        return {
            "state": "finished",
            "why": None,
            "values": {"validation": value, "nonfinite_steps": 1},
            "curve": [[9, 8, value]],
        }

    monkeypatch.setattr(study, "_trained", planted)
    found = study.run(recipe, store, study.Plan(("clip",), seeds=2), tmp_path, "cpu")
    assert order == ["baseline-seed-1", "clip-5-seed-1", "baseline-seed-2", "clip-5-seed-2"]
    values = found["rows"][1]["values"]
    assert values["validation"] == pytest.approx(0.15) and values["nonfinite_steps"] == 2
    assert (values["quality_seconds"], values["quality_cpu_seconds"]) == (9, 8)


def written(folder, records, reason=""):
    folder.mkdir()
    lines = ({"step": 0, "time": 0.0, **record} for record in records)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "status.json").write_text(json.dumps({"state": "finished", "reason": reason}))
    return folder


def clock(training, validation=None, mib=100.0):
    found = {"kind": "clock", "training_seconds": training, "training_cpu_seconds": 2 * training, "peak_mib": mib}
    return found if validation is None else found | {"validation_seconds": validation, "validation_cpu_seconds": 3 * validation}


def test_times_are_added_up_exactly(recipe, tmp_path):
    """Two epochs, the first in two parts as of a run that was stopped within it; a third without validation; a fourth."""
    step = {"kind": "train", "loss": 0.5, "gradient_norm": 1.0}
    records = [
        *(step, clock(3.0), step, clock(1.0, 0.5), {"kind": "epoch", "recall@20": 0.2}),
        *(step, clock(6.0, 0.5, 300.0), {"kind": "epoch", "recall@20": 0.4}),
        *(step | {"gradient_norm": None}, clock(8.0), {"kind": "epoch"}),
        *(step | {"loss": None}, clock(100.0, 1.0), {"kind": "epoch", "recall@20": 0.3}),
    ]
    found = study.measured(written(tmp_path / "run", records), recipe)
    assert found["curve"] == [[4.5, 9.5, 0.2], [11.0, 23.0, 0.4], [120.0, 242.0, 0.3]]
    values = found["values"]
    assert (values["epochs"], values["steps"], values["best_epoch"]) == (4, 5, 2)
    assert (values["nonfinite_steps"], values["skipped_steps"]) == (2, 1)  # a loss, and a gradient that a scaler left out
    assert (values["training_seconds"], values["first_epoch_seconds"], values["validation_seconds"]) == (7.0, 4.0, 0.5)
    assert (values["total_seconds"], values["peak_mib"], values["validation"]) == (120.0, 300.0, 0.4)
    assert study.time_to(found["curve"], 0.98 * 0.4) == (11.0, 23.0)
    assert study.time_to(found["curve"], 0.2) == (4.5, 9.5)
    assert study.time_to(found["curve"], 0.41) is None


def test_the_step_that_ends_a_training_counts(recipe, tmp_path):
    records = [{"kind": "train", "loss": 0.5, "gradient_norm": 1.0}]
    folder = written(tmp_path / "run", records, "DivergedError: The loss or its gradient is not finite (loss = nan)")
    assert study.measured(folder, recipe)["values"]["nonfinite_steps"] == 1
    assert study._has_ended(folder)


def test_a_study_has_a_page(found):
    text = study_page(found)
    assert len(text.encode()) < 300_000 and "<script" not in text
    for lever in found["levers"]:
        assert f"{lever['name']}: {lever['verdict']}" in text
    assert "Generated, not Music4All: these numbers" in text
    assert text.count("<svg") == 1 + len(found["levers"])
    assert "hot" in text and "diverged" in text and "not trained" in text


@pytest.mark.parametrize("name", guide.NAMES)
@pytest.mark.parametrize("base", ["music4all/mmgcn", "music4all/dragon", "music4all/lightgcn", "ml-1m/sasrec", "ml-1m/ss4rec"])
def test_every_lever_is_a_change_of_any_recipe(name, base):
    recipe = recipes.load(base)
    found = variants([name], recipe)
    assert found
    for one in found.values():
        kept = name == "clip" and recipe.train.clip_norm == 5.0
        assert (changed(recipe, one.overrides) == recipe) == kept
        assert one.lever == name and one.claims


def test_the_guide_s_fast_configuration_is_what_it_says():
    recipe = recipes.load("music4all/mmgcn")
    assert (recipe.batches.tokens, recipe.stopping.patience_epochs, recipe.select) == (2048, 20, "recall@20")
    fast = changed(recipe, variants(["fast"], recipe)["fast"].overrides)
    assert fast.batches.tokens == 4096 and fast.stopping.every == 3 and fast.stopping.patience_epochs == 20
    assert [metric.name for metric in fast.evaluation.metrics] == ["recall@20", "ndcg@20"]
    assert (fast.train.compile, fast.train.clip_norm, fast.train.precision) == ("model", 5.0, "float32")
    assert fast.train.optimizer.lr == 1e-3 and fast.train.scaling.rule == "none"


def test_rates_follow_the_batch_by_each_rule():
    recipe = recipes.load("music4all/mmgcn")
    found = variants(["batch"], recipe)
    rates = {name: changed(recipe, one.overrides).stages[0].optimizer.lr for name, one in found.items()}
    expected = {
        "2x-linear": 2e-3,
        "2x-sqrt": 2e-3 / 2**0.5,
        "2x-none": 1e-3,
        "4x-linear": 4e-3,
        "4x-sqrt": 2e-3,
        "4x-none": 1e-3,
    }
    assert rates == pytest.approx({f"batch-{name}": rate for name, rate in expected.items()})


def test_the_metric_that_selects_stays():
    recipe = recipes.load("ml-1m/sasrec")
    few = changed(recipe, variants(["metrics"], recipe)["metrics"].overrides)
    assert [metric.name for metric in few.evaluation.metrics] == ["recall@20", "ndcg@20", "ndcg@10"]


def test_all_stages_are_changed():
    recipe = recipes.load("ml-1m/sasrec", ["then=[{epochs: 1}]"])
    clipped = changed(recipe, variants(["clip"], recipe)["clip-5"].overrides)
    assert [stage.clip_norm for stage in clipped.stages] == [5.0, 5.0]


def test_what_is_named_by_itself_is_trained_though_it_does_not_fit(recipe):
    assert variants(["amp"], recipe)["float16"].unfit
    assert variants(["float16"], recipe)["float16"].unfit is None


@pytest.mark.parametrize("text", ["x", "=a.b=1", "a b=c.d=1", "x=", "x=train", "x=train.epochs='1", "-x=a.b=1"])
def test_a_variant_that_cannot_be_read_is_refused(text, recipe):
    with pytest.raises(UserError, match="variant"):
        guide.variants((), (text,), recipe, CPU)


def test_names_must_be_known_and_differ(recipe):
    with pytest.raises(UserError, match=r"There is no lever 'batches' \(did you mean 'batch'"):
        guide.variants(("batches",), (), recipe, CPU)
    with pytest.raises(UserError, match="Two variants are called 'clip-5'"):
        guide.variants(("clip",), ("clip-5=train.clip_norm=1.0",), recipe, CPU)
    with pytest.raises(UserError, match="Two variants are called 'baseline'"):
        guide.variants((), ("baseline=train.clip_norm=1.0",), recipe, CPU)


def test_what_a_lever_makes_of_a_recipe_may_be_none(recipe):
    broken = guide.Variant("width-0", ("model.width=0",), lever="width")
    (told,), recipes_ = study._possible(recipe, [broken])
    assert "model.width: expected a number greater than or equal to 1" in told.unfit and not recipes_
    with pytest.raises(UserError, match=r"model\.width"):
        study._possible(recipe, [guide.Variant("own", ("model.width=0",))])


def test_a_counted_model_has_nothing_to_study(store, tmp_path):
    with pytest.raises(UserError, match="popularity is counted, not trained"):
        counted = recipes.load("music4all/lightgcn", ["model={kind: popularity}"])
        study.run(counted, store, study.Plan(()), tmp_path, "cpu")


def test_the_command_line(place, store, tmp_path):
    words = ["music4all/mmgcn", *SMALL, "--levers", "clip", "--store", store.folder, "--runs", tmp_path / "runs"]
    command = [sys.executable, "-m", "turborec", "study", *words, "--device", "cpu", "--out", tmp_path / "s.json"]
    command += ["--page", tmp_path / "s.html"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=250, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "clip: " in done.stdout and "The guide: Gradients clipped" in done.stdout and "s.html" in done.stdout
    assert [row["name"] for row in json.loads((tmp_path / "s.json").read_text())["rows"]] == ["baseline", "clip-5"]
    assert "Study of" in (tmp_path / "s.html").read_text()
