"""Scripts for plain machines and RunPod: as they were last read, sound as shell, and run here with real data and real kills."""

import functools
import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from turborec.launch import runpod
from turborec.launch.script import Download, Machine, Work, script
from turborec.recipe import MistakesError, validate

GOLDEN = Path(__file__).parent / "golden" / "script"
DATA = [{"address": "https://example.org/x.csv?a=1&b=2", "sha256": "a" * 64, "name": "shop/x.csv"}]
PHASES = Work(("ml-1m-then-ml-20m", "--debug"), "runs/two", phases=True)
OWN = Work(
    ("my recipe.yaml", "seed=2"), "runs/own", prepare=("my recipe.yaml", "seed=2"), text="# mine\nmodel: {kind: sasrec}\n"
)
CASES = {
    "plain": lambda: script(Machine(), Work(("ml-1m/sasrec",), "runs/ml-1m", prepare=("ml-1m/sasrec",))),
    "data": lambda: script(
        validate(Machine, {"data": DATA, "gpus": 4, "allocator": "expandable_segments:True", "folder": "a b"}, "the test"), OWN
    ),
    "phases": lambda: script(Machine(environment=None, processes=2), PHASES),
    "runpod": lambda: runpod.start_script(pod(), PHASES),
    "runpod-network-volume": lambda: runpod.start_script(pod(network_volume="v1", machine={"gpus": 4, "data": DATA}), OWN),
}


def pod(**tree):
    return validate(runpod.Pod, {"image": "me/turborec:1", "machine": {"gpus": 1}, **tree}, "the test")


@pytest.mark.parametrize("name", CASES)
def test_the_script_is_the_one_that_was_read(name):
    assert CASES[name]() == (GOLDEN / f"{name}.sh").read_text()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("command", [["bash", "-n"], [Path(sys.executable).with_name("shellcheck"), "-"]], ids=["n", "check"])
def test_the_shell_understands_it(name, command):
    done = subprocess.run(command, input=CASES[name](), text=True, capture_output=True, check=False)
    assert not done.returncode, done.stdout + done.stderr


def test_hostile_words_stay_words(tmp_path):
    hostile = "x'; touch hacked; '$(touch hacked)`touch hacked`"
    machine = Machine(environment=None, folder=str(tmp_path), data_folder=hostile, home=hostile, restarts=0, python="echo")
    work = Work((hostile, hostile), "out", prepare=(hostile,), text=f"{hostile}\nEND_OF_FILE\ntouch hacked\n")
    done = subprocess.run(["bash", "-c", script(machine, work)], capture_output=True, text=True, check=True)
    assert done.stdout.count(hostile) == 1  # trained with; the first word is the file that was brought along
    assert (tmp_path / "out.yaml").read_text() == f"{hostile}\nEND_OF_FILE\ntouch hacked\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.log", "out.yaml"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"data": [DATA[0] | {"sha256": "a" * 63}]},
        {"data": [DATA[0] | {"name": "../x"}]},
        {"data": [DATA[0] | {"address": "ftp://example.org/x"}]},
        {"data": [{"address": "https://example.org/", "sha256": "a" * 64}]},
        {"allocator": "expandable_segments:True; rm"},
        {"gpus": -1},
    ],
)
def test_what_cannot_be_asked_is_refused(wrong):
    with pytest.raises(MistakesError):
        validate(Machine, wrong, "the test")


@pytest.mark.parametrize(
    ("tree", "ending"), [({}, "stop"), ({"network_volume": "v1"}, "remove"), ({"end": "keep"}, "keep")], ids=str
)
def test_a_pod_ends_itself_without_losing_the_run(tree, ending):
    assert pod(**tree).ending == ending
    assert (f'runpodctl {ending} pod "$RUNPOD_POD_ID"' in runpod.start_script(pod(**tree), PHASES)) is (ending != "keep")


@pytest.mark.parametrize(
    "wrong",
    [
        {"end": "remove"},
        {"end": "stop", "network_volume": "v1"},
        {"image": "a b"},
        {"machine": {"gpus": 0}},
        {"gpu": 'x"; rm'},
    ],
)
def test_a_pod_that_would_lose_the_run_is_refused(wrong):
    with pytest.raises(MistakesError):
        pod(**wrong)


def test_the_request_holds_the_script_and_the_volume():
    body = runpod.request(pod(), runpod.start_script(pod(), PHASES))
    assert body["dockerStartCmd"] == [CASES["runpod"]()] and body["volumeMountPath"] == "/workspace"
    assert (body["volumeInGb"], body["gpuCount"], body["gpuTypeIds"]) == (100, 1, ["NVIDIA RTX A6000"])
    assert "volumeInGb" not in runpod.request(pod(network_volume="v1"), "")


def test_presets_are_sound():
    for tree in runpod.PRESETS.values():
        assert validate(runpod.Pod, {"image": "me/turborec:1", **tree}, "the test").machine.gpus


def test_what_runs_in_a_pod_tells_it_to_stop(tmp_path):
    """The pod's own command is a file here that writes down how it was called."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "runpodctl").write_text(f'#!/bin/sh\necho "$@" >>"{tmp_path}/told"\n')
    (tmp_path / "bin" / "runpodctl").chmod(0o755)
    (tmp_path / "volume").mkdir()
    asked = pod(machine={"gpus": 1, "folder": str(tmp_path / "volume"), "python": "true"})
    text = runpod.start_script(asked, PHASES).replace("/workspace", str(tmp_path / "volume"))
    given = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "RUNPOD_POD_ID": "abc"}
    done = subprocess.run(["bash", "-c", text], env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "told").read_text() == "stop pod abc\n"


RECIPE = """\
data: {source: {kind: table, events: events.csv, user: user, item: item, time: time}}
batches: {max_length: 12, tokens: 96}
model: {kind: sasrec, width: 16, hidden: 32, dropout: 0.3}
train: {epochs: 4, precision: float32}
stopping: {patience_epochs: null}
checkpoints: {minutes: 0.003}
anchors: false
"""


@pytest.fixture
def served(tmp_path):
    """The address of a file of events on a real server, and its SHA-256."""
    generator = np.random.default_rng(0)
    rows = [f"{u},{generator.integers(1, 31)},{t}" for u in range(60) for t in range(generator.integers(4, 30))]
    content = ("user,item,time\n" + "\n".join(rows)).encode()
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "events.csv").write_bytes(content)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Nobody reads it."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path / "web"))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/events.csv", hashlib.sha256(content).hexdigest()
    server.shutdown()
    server.server_close()
    thread.join()


def started(folder, served, sha256=None, words=(), **machine):
    """The script, under way."""
    data = Download(address=served[0], sha256=sha256 or served[1])
    asked = Machine(environment=None, python=sys.executable, folder=str(folder), home="home", data=(data,), **machine)
    work = Work(("recipe.yaml", "--device=cpu", *words), "runs/x", prepare=("recipe.yaml",), text=RECIPE)
    given = {**os.environ, "OMP_NUM_THREADS": "1", "SCRIPT_OF": str(folder)}
    said = (folder / "said").open("ab")
    with said:
        return subprocess.Popen(["bash", "-c", script(asked, work)], stdout=said, stderr=said, env=given)


def workers(folder):
    """The processes of the training that the script has started."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            facts = environment.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"SCRIPT_OF={folder}".encode() in facts and any(fact.startswith(b"RANK=") for fact in facts):
            found.append(int(environment.parent.name))
    return found


def when(folder, process, steps):
    """Wait until the training has done so many steps."""
    log, deadline = folder / "runs" / "x" / "metrics.jsonl", time.monotonic() + 180
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_bytes().count(b'"kind": "train"') >= steps:
            return
        time.sleep(0.005)
    pytest.fail((folder / "said").read_text())


def test_another_content_is_refused_and_nothing_is_trained(tmp_path, served):
    process = started(tmp_path, served, sha256="0" * 64)
    assert process.wait(timeout=120) == 2
    said = (tmp_path / "said").read_text()
    assert "gave another file" in said and "ended with exit code 2" in said and "Traceback" not in said
    assert not (tmp_path / "data" / "events.csv").exists() and not (tmp_path / "runs" / "x").exists()


def test_a_killed_training_is_started_again_and_finishes(tmp_path, served):
    process = started(tmp_path, served, restarts=1)
    when(tmp_path, process, 20)  # there is a checkpoint after an epoch, of some 11 steps
    for pid in workers(tmp_path):
        os.kill(pid, signal.SIGKILL)
    assert process.wait(timeout=240) == 0, (tmp_path / "said").read_text()
    log = (tmp_path / "runs" / "x.log").read_text()
    assert "exit code 137: started again from the last checkpoint, 1 of 1" in log
    assert "Going on after step" in log and log.rstrip().endswith("ended with exit code 0")
    assert json.loads((tmp_path / "runs" / "x" / "status.json").read_text())["state"] == "finished"
    assert started(tmp_path, served).wait(timeout=120) == 0
    assert "nothing is left to train" in (tmp_path / "runs" / "x.log").read_text()
    other = started(tmp_path, served, words=("seed=2",))
    assert other.wait(timeout=120) == 2
    assert "holds a run of another recipe" in (tmp_path / "said").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130), (signal.SIGUSR1, 75)])
def test_a_signal_to_the_script_saves_and_the_same_script_goes_on(tmp_path, served, number, code):
    process = started(tmp_path, served, processes=2)
    when(tmp_path, process, 7)
    process.send_signal(number)
    assert process.wait(timeout=120) == code, (tmp_path / "said").read_text()
    assert json.loads((tmp_path / "runs" / "x" / "status.json").read_text())["state"] == "interrupted"
    assert "started again" not in (tmp_path / "said").read_text()
    assert started(tmp_path, served, processes=2).wait(timeout=240) == 0, (tmp_path / "said").read_text()


@pytest.mark.slow
def test_a_training_that_dies_each_time_ends_with_its_own_code(tmp_path, served):
    process = started(tmp_path, served, restarts=1)
    for _ in range(2):
        deadline = time.monotonic() + 120
        while not (found := workers(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        while workers(tmp_path):
            time.sleep(0.02)
    assert process.wait(timeout=120) == 137
    assert (tmp_path / "said").read_text().count("started again") == 1


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for case, text in CASES.items():
        (GOLDEN / f"{case}.sh").write_text(text())
