"""A training on a real Slurm of one node, which this test sets up and stops: warned, saved, requeued, and equal in the end.

It needs Debian's `slurm-wlm` and `munge`, and root, which Slurm's daemons want for requeueing jobs.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stores import store_of
from turborec.data.store import sha256
from turborec.launch import slurm
from turborec.launch.script import Work

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RECIPE = """\
data: {source: {kind: online_retail}}
batches: {max_length: 12, tokens: 48}
model: {kind: sasrec, width: 16, hidden: 32, dropout: 0.3}
train: {epochs: 40, average: 0.9, schedule: {kind: cosine, warmup: 0.1}, precision: float32}
stopping: {patience_epochs: null}
checkpoints: {minutes: 1.0}
anchors: false
"""

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
SlurmctldPort={port}
SlurmdPort={next}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
JobRequeue=1
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=5
NodeName={host} CPUs={cores} RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment in which Slurm's commands speak to a controller and a node of this test's own."""
    if missing := [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if not shutil.which(name)]:
        pytest.skip(f"Slurm: {', '.join(missing)} not installed (Debian: slurm-wlm, munge)")
    if os.geteuid():
        pytest.skip("Slurm: its daemons need root to requeue jobs")
    folder = Path(tmp_path_factory.mktemp("slurm", numbered=True))
    folder.chmod(0o755)
    for parent in folder.parents[:3]:
        parent.chmod(0o755)  # munge refuses a socket below a folder that others cannot enter
    host = socket.gethostname().split(".")[0]
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(host=host, folder=folder, port=port, next=port + 1, cores=os.cpu_count())
    )
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
    munge = [f"--{name}={folder / file}" for name, file in (("key-file", "munge.key"), ("socket", "munge.socket"))]
    munge += [f"--{name}={folder / ('munge.' + name)}" for name in ("pid-file", "log-file", "seed-file")]
    daemons = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in (["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"], ["slurmd", "-D"])
    ]
    try:
        waited = time.monotonic()
        while "idle" not in asked(environment, "sinfo", "-h", "-o", "%T"):
            assert time.monotonic() - waited < 60, (folder / "slurmctld.log").read_text()[-3000:]
            time.sleep(1)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            try:
                daemon.wait(timeout=60)
            except subprocess.TimeoutExpired:  # slurmd waits for a controller that is gone
                daemon.kill()
                daemon.wait()


def asked(environment, *command):
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.strip()


def outcome(run):
    last = max((run / "checkpoints").glob("step_??????"))
    return [sha256(path) for path in sorted(last.glob("*.safetensors"))]


def steps_done(run):
    log = run / "metrics.jsonl"
    return log.read_bytes().count(b'"kind": "train"') if log.exists() else 0


def test_three_preemptions_change_nothing(cluster, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    generator = np.random.default_rng(0)
    store_of(tmp_path / "store", [generator.integers(1, 61, generator.integers(3, 40)).tolist() for _ in range(60)], items=60)
    words = [str(tmp_path / "recipe.yaml"), "--store", str(tmp_path / "store")]
    whole = [sys.executable, "-m", "turborec", "launch", "local", "--processes", "2", *words, "--out", str(tmp_path / "whole")]
    subprocess.run(whole, env=cluster, check=True, capture_output=True, timeout=600)
    total = steps_done(tmp_path / "whole")

    activate = Path(sys.executable).with_name("activate")
    job = slurm.Job(
        processes=2, cpus=os.cpu_count(), memory="1G", time="00:30:00", activate=str(activate), folder=str(tmp_path)
    )
    (tmp_path / "job.sh").write_text(slurm.script(job, Work(tuple(words), str(tmp_path / "job"))))
    said = asked(cluster, "sbatch", "--parsable", f"--chdir={tmp_path}", str(tmp_path / "job.sh"))
    assert said.isdecimal(), said
    for preemption in (1, 2, 3):
        until(lambda part=preemption: steps_done(tmp_path / "job") > part * total // 5, cluster, said, tmp_path)
        asked(cluster, "scancel", "--batch", "--signal=USR1", said)
        until(lambda: status(tmp_path / "job") == "interrupted", cluster, said, tmp_path)
        until(lambda: status(tmp_path / "job") == "running", cluster, said, tmp_path)
    until(lambda: status(tmp_path / "job") == "finished", cluster, said, tmp_path)
    log = (tmp_path / f"turborec-{said}.log").read_text()
    assert log.count("back into the queue") == 3 and log.count("Going on after step") == 3
    assert outcome(tmp_path / "job") == outcome(tmp_path / "whole")


TABLE = RECIPE.replace("{kind: online_retail}", "{kind: table, events: events.csv, user: user, item: item, time: time}")


def submitted(cluster, folder, *words):
    """What `turborec launch slurm --submit` hands in: the number of the training's job."""
    activate = Path(sys.executable).with_name("activate")
    asked = [f"cpus={os.cpu_count()}", "memory=1G", "time=00:30:00", f"activate={activate}", f"folder={folder}", "processes=2"]
    command = [sys.executable, "-m", "turborec", "launch", "slurm", "--submit", *words]
    for one in asked:
        command += ["--job", one]
    done = subprocess.run(command, env=cluster, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def test_a_training_waits_for_its_data_and_phases_go_on_after_a_preemption(cluster, tmp_path):
    generator = np.random.default_rng(0)
    rows = [f"{u},{generator.integers(1, 61)},{t}" for u in range(60) for t in range(generator.integers(4, 40))]
    (tmp_path / "events.csv").write_text("user,item,time\n" + "\n".join(rows))
    (tmp_path / "recipe.yaml").write_text(TABLE)
    (tmp_path / "phases.yaml").write_text(
        "phases:\n- {name: a, recipe: recipe.yaml, overrides: [train.epochs=5], at_least: {ndcg@10: 0.001}}\n"
        "- {name: b, recipe: recipe.yaml, overrides: [train.epochs=1], at_least: {ndcg@10: 0.99}}\n"
        "- {name: c, recipe: recipe.yaml}\n"
    )
    home = f"--home={tmp_path / 'home'}"
    prepare = ("--prepare", "--job", "prepare.cpus=1", "--job", "prepare.memory=1G")
    job = submitted(cluster, tmp_path, "recipe.yaml", "train.epochs=2", home, "--out", "run", *prepare)
    until(lambda: status(tmp_path / "run") == "finished", cluster, job, tmp_path)
    before = (tmp_path / f"turborec-prepare-{int(job) - 1}.log").read_text()
    assert str(tmp_path / "home" / "stores") in before
    assert "Left out" not in (tmp_path / f"turborec-{job}.log").read_text()  # it found the store

    job = submitted(cluster, tmp_path, "--phases", "phases.yaml", home, "--out", "two")
    until(lambda: steps_done(tmp_path / "two" / "a") > 20, cluster, job, tmp_path)
    asked(cluster, "scancel", "--batch", "--signal=USR1", job)
    until(lambda: status(tmp_path / "two") == "interrupted", cluster, job, tmp_path)
    until(lambda: status(tmp_path / "two") == "failed", cluster, job, tmp_path)
    log = (tmp_path / f"turborec-{job}.log").read_text()
    assert log.count("back into the queue") == 1 and log.count("Going on after step") == 1
    until(lambda: "ExitCode=12:0" in asked(cluster, "scontrol", "show", "job", job), cluster, job, tmp_path)
    assert not (tmp_path / "two" / "c").exists()


def status(run):
    try:
        return json.loads((run / "status.json").read_text())["state"]
    except (OSError, ValueError):
        return None


def until(reached, environment, job, folder):
    """Wait for something, and say what Slurm and the job have said where it does not come."""
    waited = time.monotonic()
    while not reached():
        if time.monotonic() - waited > 300:
            log = folder / f"turborec-{job}.log"
            pytest.fail(asked(environment, "scontrol", "show", "job", job) + (log.read_text()[-3000:] if log.exists() else ""))
        time.sleep(0.2)
