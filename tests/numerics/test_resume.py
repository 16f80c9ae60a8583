"""Killed and resumed equals never stopped, to the bit; shown with real processes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from stores import store_of
from turborec.data.store import sha256

RECIPE = """\
data: {source: {kind: online_retail}}
batches: {max_length: 12, tokens: 192}
model: {kind: sasrec, width: 16, hidden: 32, dropout: 0.3}
train: {epochs: 3, clip_norm: 1.0, average: 0.9, schedule: {kind: cosine, warmup: 0.1}}
then: [{epochs: 2, start: best, optimizer: {lr: 0.0003}}]
checkpoints: {minutes: 0.003, keep: 3}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    (folder / "recipe.yaml").write_text(RECIPE)
    generator = np.random.default_rng(0)
    store_of(folder / "store", [generator.integers(1, 61, generator.integers(3, 40)).tolist() for _ in range(40)], items=60)
    subprocess.run(command(folder, "whole"), check=True, capture_output=True, timeout=120)
    return folder


def command(place, run, resume=False):
    what = ["--resume", str(place / run)] if resume else [str(place / "recipe.yaml"), "--out", str(place / run)]
    return [sys.executable, "-m", "turborec", "train", *what, "--store", str(place / "store"), "--json"]


def steps_done(run):
    log = run / "metrics.jsonl"
    return log.read_bytes().count(b'"kind": "train"') if log.exists() else 0


def saved(run):
    folder = run / "checkpoints"
    return sorted(p for p in folder.iterdir() if p.name[5:].isdigit()) if folder.exists() else []


def stop(place, run, after, number, checkpoints=0):
    """Start the run and send it a signal once it has done `after` steps and committed `checkpoints` checkpoints."""
    process = subprocess.Popen(command(place, run), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if steps_done(place / run) >= after and len(saved(place / run)) >= checkpoints:
            break
        time.sleep(0.005)
    process.send_signal(number)
    return process.wait(timeout=60), process.communicate()[1]


def outcome(run):
    """The final weights and all that was measured on the way, times aside."""
    last = sorted((run / "checkpoints").iterdir())[-1]
    names = ("model", "average", "optimizer")
    weights = [sha256(last / f"{n}.safetensors") for n in names if (last / f"{n}.safetensors").exists()]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lasting = [record for record in records if record["kind"] not in ("usage", "clock")]
    return weights, [{k: v for k, v in r.items() if k not in ("time", "targets_per_second")} for r in lasting]


@pytest.mark.parametrize("after", [2, 12, pytest.param(28, marks=pytest.mark.slow)])
def test_kill_9_and_resume(place, after):
    run = f"killed-{after}"
    assert stop(place, run, after, signal.SIGKILL)[0] == -signal.SIGKILL
    subprocess.run(command(place, run, resume=True), check=True, capture_output=True, timeout=120)
    assert outcome(place / run) == outcome(place / "whole")


def test_ctrl_c_saves_and_says_how_to_go_on(place):
    code, said = stop(place, "interrupted", 5, signal.SIGINT)
    assert code == 130
    assert f"turborec train --resume {place / 'interrupted'}" in said and "Traceback" not in said
    assert json.loads((place / "interrupted" / "status.json").read_text())["state"] == "interrupted"
    subprocess.run(command(place, "interrupted", resume=True), check=True, capture_output=True, timeout=120)
    assert outcome(place / "interrupted") == outcome(place / "whole")


def test_resuming_a_finished_run_changes_nothing(place):
    before = outcome(place / "whole")
    subprocess.run(command(place, "whole", resume=True), check=True, capture_output=True, timeout=120)
    assert outcome(place / "whole") == before


def test_a_second_training_on_one_folder_is_refused(place):
    first = subprocess.Popen(command(place, "shared"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while steps_done(place / "shared") < 1 and first.poll() is None:
            time.sleep(0.005)
        os.kill(first.pid, signal.SIGSTOP)
        second = subprocess.run(command(place, "shared"), capture_output=True, text=True, timeout=60)
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 2 and str(first.pid) in second.stderr and "Traceback" not in second.stderr


def test_a_damaged_checkpoint_gives_way_to_the_one_before(place):
    stop(place, "damaged", 9, signal.SIGKILL, checkpoints=2)
    last = saved(place / "damaged")[-1]
    weights = bytearray((last / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (last / "model.safetensors").write_bytes(weights)
    done = subprocess.run(command(place, "damaged", resume=True), check=True, capture_output=True, text=True, timeout=120)
    assert "model.safetensors" in done.stderr
    assert outcome(place / "damaged") == outcome(place / "whole")


def test_another_recipe_is_not_run_in_the_same_folder(place):
    changed = [*command(place, "whole")[:-1], "seed=9"]
    done = subprocess.run(changed, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "another recipe" in done.stderr
