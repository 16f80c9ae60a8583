"""Trainings in several processes that are stopped, killed, hung and started anew; with real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stores import store_of
from turborec.data.store import sha256

RECIPE = """\
data: {source: {kind: online_retail}}
batches: {max_length: 12, tokens: 192}
model: {kind: sasrec, width: 16, hidden: 32, dropout: 0.3}
train: {epochs: 4, clip_norm: 1.0, average: 0.9, schedule: {kind: cosine, warmup: 0.1}, precision: float32}
checkpoints: {minutes: 0.003, keep: 3}
anchors: false
"""

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launch")
    (folder / "recipe.yaml").write_text(RECIPE)
    generator = np.random.default_rng(0)
    store_of(folder / "store", [generator.integers(1, 61, generator.integers(3, 40)).tolist() for _ in range(60)], items=60)
    code, said = ended(launched(folder, "whole"))
    assert code == 0, said
    return folder


def launched(place, run, *words, processes=2, resume=False, **environment):
    """`turborec launch local`, under way."""
    what = ["--resume", str(place / run)] if resume else [str(place / "recipe.yaml"), "--out", str(place / run)]
    command = [sys.executable, "-m", "turborec", "launch", "local", "--processes", str(processes), *what]
    command += ["--store", str(place / "store"), "--json", *words]
    given = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=given)


def ended(process):
    """The exit code and what was said on standard error."""
    said = process.communicate(timeout=240)[1]
    return process.returncode, said


def steps_done(run):
    log = run / "metrics.jsonl"
    return log.read_bytes().count(b'"kind": "train"') if log.exists() else 0


def when(place, run, process, steps):
    """Wait until the run has done so many steps."""
    deadline = time.monotonic() + 180
    while steps_done(place / run) < steps and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert steps_done(place / run) >= steps, process.communicate()[1]


def ranks_of(process):
    """The processes of the training, by rank."""
    found = {}
    for child in subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    ).stdout.split():
        try:
            facts = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = [int(fact.split(b"=")[1]) for fact in facts if fact.startswith(b"RANK=")]
        found.update({rank[0]: int(child)} if rank else {})
    return found


def outcome(run):
    """The final weights and all that was measured on the way, times aside."""
    last = sorted(p for p in (run / "checkpoints").iterdir() if p.name[5:].isdigit())[-1]
    weights = [sha256(last / f"{name}.safetensors") for name in ("model", "average", "optimizer")]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lasting = [record for record in records if record["kind"] != "usage"]
    return weights, [{k: v for k, v in r.items() if k not in ("time", "targets_per_second")} for r in lasting]


def results(run):
    return json.loads((run / "evaluation" / "test" / "sasrec" / "result.json").read_text())["values"]["masked"]


def test_two_processes_find_what_one_finds(place):
    command = [sys.executable, "-m", "turborec", "train", str(place / "recipe.yaml"), "--out", str(place / "one"), "--json"]
    command += ["--store", str(place / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout)["results"]
    one, two = results(place / "one"), results(place / "whole")
    assert one == pytest.approx(two, rel=1e-3)
    records = [outcome(place / name)[1] for name in ("one", "whole")]
    losses = [[r["loss"] for r in some if r["kind"] == "train"] for some in records]
    assert len(losses[0]) == len(losses[1]) and losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_asks_to_be_started_again(place, number):
    run = f"stopped-{number.name}"
    process = launched(place, run)
    when(place, run, process, 7)
    process.send_signal(number)
    code, said = ended(process)
    assert code == 75, said
    assert f"Stopped by {number.name}" in said and "--resume" in said and "Traceback" not in said
    assert json.loads((place / run / "status.json").read_text())["state"] == "interrupted"
    assert ended(launched(place, run, resume=True))[0] == 0
    assert outcome(place / run) == outcome(place / "whole")


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_takes_the_run_down_and_it_goes_on(place, rank):
    run = f"killed-{rank}"
    process = launched(place, run)
    when(place, run, process, 7)
    began = time.monotonic()
    os.kill(ranks_of(process)[rank], signal.SIGKILL)
    code, said = ended(process)
    assert code == 128 + signal.SIGKILL and time.monotonic() - began < 100
    assert f"process {rank} was killed by SIGKILL" in said and "Traceback" not in said, said
    assert ended(launched(place, run, resume=True))[0] == 0
    assert outcome(place / run) == outcome(place / "whole")


def test_a_killed_process_is_started_anew(place):
    process = launched(place, "restarted", "--restarts", "1")
    when(place, "restarted", process, 7)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    code, said = ended(process)
    assert code == 0, said
    assert outcome(place / "restarted") == outcome(place / "whole")


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), pytest.param(2, 3, marks=pytest.mark.slow)])
def test_any_number_of_processes_goes_on(place, before, after):
    run = f"from-{before}-to-{after}"
    process = launched(place, run, processes=before)
    when(place, run, process, 7)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 75
    code, said = ended(launched(place, run, processes=after, resume=True))
    assert code == 0, said
    assert results(place / run) == pytest.approx(results(place / "whole"), rel=1e-3)


def test_a_mistake_is_told_once(place):
    code, said = ended(launched(place, "mistaken", "train.epochs=many"))
    assert code == 2 and said.count("train.epochs") == 1


def test_a_process_that_hangs_is_not_waited_for(place):
    process = launched(place, "hung", TURBOREC_PATIENCE="15")
    when(place, "hung", process, 7)
    os.kill(ranks_of(process)[1], signal.SIGSTOP)
    code, said = ended(process)
    assert code == 2 and "not heard from for 15 s" in said and "Traceback" not in said, said
    assert ended(launched(place, "hung", resume=True))[0] == 0
    assert outcome(place / "hung") == outcome(place / "whole")


def test_a_loss_that_is_not_a_number_stops_all(place):
    code, said = ended(launched(place, "diverged", "train.optimizer.lr=1e30", "train.clip_norm=null", "train.average=null"))
    assert code == 2 and "not finite" in said and "Traceback" not in said, said


def test_tokens_of_each_process_make_a_batch_of_all(place):
    each = ("batches.tokens=96", "batches.tokens_of=process")
    code, said = ended(launched(place, "each", *each))
    assert code == 0, said
    assert outcome(place / "each") == outcome(place / "whole")
    process = launched(place, "each, on", *each)
    when(place, "each, on", process, 7)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 75
    code, said = ended(launched(place, "each, on", processes=1, resume=True))
    assert code == 2 and "go on with 2 processes" in said


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_verify_resume(place, processes):
    command = [sys.executable, "-m", "turborec", "verify-resume", str(place / "recipe.yaml"), "--store", str(place / "store")]
    command += ["--steps", "20", "--kills", "2", "--processes", str(processes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0 and "Killed and resumed equals never stopped." in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_hundred_kills_lose_nothing(place, processes):
    command = [sys.executable, "-m", "turborec", "verify-resume", str(place / "recipe.yaml"), "--store", str(place / "store")]
    command += ["--steps", "200", "--kills", "50", "--processes", str(processes), "batches.tokens=24"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
