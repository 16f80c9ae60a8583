"""Trainings in several processes that are stopped, killed, hung and started anew; with real processes."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.disks import small_disk
from stores import store_of
from turborec.data.store import sha256
from turborec.engine import checkpoint

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
    lasting = [record for record in records if record["kind"] not in ("usage", "clock")]
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


def test_two_processes_train_the_adapters_that_one_trains(place):
    """The base is frozen, and with instance-wise adapters every process looks at it for the gates of its own rows."""
    tree = RECIPE.replace("kind: sasrec", "kind: bert4rec").replace("epochs: 4", "epochs: 2")
    (place / "base.yaml").write_text(tree)
    (place / "adapted.yaml").write_text(tree + f"base: {place}/base\nadapters: {{kind: ilora, rank: 4, experts: 2}}\n")
    for name, out in (("base", "base"), ("adapted", "adapted-by-one")):
        command = [sys.executable, "-m", "turborec", "train", str(place / f"{name}.yaml"), "--out", str(place / out)]
        subprocess.run([*command, "--store", str(place / "store")], capture_output=True, timeout=120, check=True)
    command = [sys.executable, "-m", "turborec", "launch", "local", "--processes", "2", str(place / "adapted.yaml")]
    command += ["--out", str(place / "adapted-by-two"), "--store", str(place / "store")]
    subprocess.run(command, capture_output=True, timeout=240, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    runs = [place / "adapted-by-one", place / "adapted-by-two"]
    losses = [[r["loss"] for r in outcome(run)[1] if r["kind"] == "train"] for run in runs]
    assert len(losses[0]) == len(losses[1]) > 4 and losses[0] == pytest.approx(losses[1], rel=1e-4)
    one, two = (checkpoint.load_latest(run / "checkpoints").tensors["model"] for run in runs)
    assert one.keys() == two.keys() and any("adapter" in name for name in one)
    assert all(torch.allclose(one[name].float(), two[name].float(), atol=1e-3) for name in one)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGUSR1])
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


@pytest.mark.parametrize(
    ("before", "after"), [(2, 1), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((1, 2), (2, 3)))]
)
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


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_hangs_is_named_and_not_waited_for(place, rank):
    run = f"hung-{rank}"
    process = launched(place, run, TURBOREC_PATIENCE="15")
    when(place, run, process, 7)
    os.kill(ranks_of(process)[rank], signal.SIGSTOP)
    code, said = ended(process)
    assert code == 2 and "not heard from for 15 s" in said and "Traceback" not in said, said
    assert re.search(rf"15 s: process {rank} hangs \(last heard from 1\d s ago, (after step \d|before its first)", said), said
    assert "W socket" not in said and f"process {1 - rank} hangs" not in said, said
    assert ended(launched(place, run, resume=True))[0] == 0
    assert outcome(place / run) == outcome(place / "whole")


def filled(disk, process, kind):
    """Leave no room: on the disk, or for the leader alone, whose files may not grow (what a quota does); how to make room."""
    if kind == "limit":
        resource.prlimit(ranks_of(process)[0], resource.RLIMIT_FSIZE, (2000, 2000))
        return lambda: None
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(2**16))
    return ballast.unlink


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["disk", "limit"])
def test_a_full_disk_ends_all_and_the_run_goes_on_when_there_is_room(place, tmp_path, kind):
    with small_disk(tmp_path, 2**16) if kind == "disk" else nullcontext(tmp_path) as disk:
        run = disk / "run"
        process = launched(place, run)
        when(place, run, process, 7)
        while not checkpoint.checkpoints(run / "checkpoints") and process.poll() is None:
            time.sleep(0.005)
        make_room = filled(disk, process, kind)
        began = time.monotonic()
        code, said = ended(process)
        assert code == 2 and time.monotonic() - began < 60, said
        assert ("No space left on device" if kind == "disk" else "File too large") in said and "Traceback" not in said, said
        newest = checkpoint.latest(run / "checkpoints")
        assert newest and checkpoint.load(newest).step >= 1
        make_room()
        assert ended(launched(place, run, resume=True))[0] == 0
        assert outcome(run) == outcome(place / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["altered", "cut short", "lost"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_in_all_processes(place, how):
    run = f"damaged, {how}"
    process = launched(place, run)
    folder = place / run / "checkpoints"
    while process.poll() is None and (len(checkpoint.checkpoints(folder)) < 2 or steps_done(place / run) < 9):
        time.sleep(0.005)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    ended(process)
    weights = checkpoint.checkpoints(folder)[-1] / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    if how != "lost":
        weights.write_bytes(content[:-9] if how == "cut short" else content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    code, said = ended(launched(place, run, resume=True))
    assert code == 0 and said.count("The checkpoint before it is tried") == 1 and "model.safetensors" in said, said
    assert outcome(place / run) == outcome(place / "whole")


@pytest.mark.slow
def test_when_every_checkpoint_is_damaged_all_processes_end(place):
    process = launched(place, "all damaged")
    when(place, "all damaged", process, 9)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    ended(process)
    for path in checkpoint.checkpoints(place / "all damaged" / "checkpoints"):
        (path / "state.json").write_bytes(b"{}")
    code, said = ended(launched(place, "all damaged", resume=True))
    assert code == 2 and "Every checkpoint in" in said and "state.json" in said and "Traceback" not in said, said


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
