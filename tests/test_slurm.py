"""The scripts for Slurm: as they were when somebody last read them, sound as shell, and safe with whatever a user names."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from turborec.errors import UserError
from turborec.launch import slurm
from turborec.launch.script import Work
from turborec.recipe import MistakesError, validate

GOLDEN = Path(__file__).parent / "golden" / "slurm"
CASES = {
    "plain": ({}, ["ml-1m/sasrec"], "runs/ml-1m"),
    "4xh100": (
        slurm.PRESETS["4xh100"] | {"partition": "gpu", "modules": ["cuda/12.4"]},
        ["ml-1m/sasrec", "seed=2"],
        "runs/big",
    ),
    "sweep": (
        {"nodes": 2, "gpus": 4, "array": ["train.optimizer.lr=1e-3", "train.optimizer.lr={a: 1}"], "after": "1234"},
        ["my recipe.yaml"],
        "runs/a sweep",
    ),
    "container": (
        {"gpus": 1, "container": "images/turborec.sif", "activate": None, "folder": "/scratch dir", "requeue": False},
        ["ml-1m/sasrec"],
        "runs/c",
    ),
    "snellius-4xh100": (slurm.PRESETS["snellius-4xh100"], ["ml-1m/sasrec"], "runs/h"),
    "prepare": (
        slurm.PRESETS["4xh100"] | {"partition": "gpu", "prepare": {"partition": "cpu", "cpus": 16}},
        ["my recipe.yaml", "--device", "cuda"],
        "runs/p",
    ),
    "phases": (slurm.PRESETS["4xh100"] | {"partition": "gpu"}, ["ml-1m-then-ml-20m"], "runs/two"),
}


def rendered(name):
    tree, words, out = CASES[name]
    job = validate(slurm.Job, tree, "the test")
    work = Work(tuple(words), out, phases=name == "phases", prepare=tuple(words[:1]))
    return slurm.preparation(job, work) if job.prepare else slurm.script(job, work)


@pytest.mark.parametrize("name", CASES)
def test_the_script_is_the_one_that_was_read(name):
    assert rendered(name) == (GOLDEN / f"{name}.sh").read_text()


@pytest.mark.parametrize("name", CASES)
def test_the_shell_understands_it(name):
    done = subprocess.run(["bash", "-n"], input=rendered(name), text=True, capture_output=True, check=False)
    assert not done.returncode, done.stderr


@pytest.mark.parametrize("name", CASES)
def test_shellcheck_finds_nothing(name):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, "-"], input=rendered(name), text=True, capture_output=True, check=False)
    assert not done.returncode, done.stdout


def test_hostile_words_stay_words(tmp_path):
    """A name that would run a command or end a line of #SBATCH is quoted, or refused."""
    hostile = "x'; touch hacked; '$(touch hacked)`touch hacked`"
    text = slurm.script(slurm.Job(activate=None, folder=str(tmp_path)), Work((hostile,), hostile))
    # All up to the start of the training, with its two commands replaced by echoes.
    head = text.split("srun --kill")[0].replace("scontrol show hostnames", "echo")
    environment = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "here", "PATH": "/usr/bin:/bin"}
    told = head + 'printf "%s\\n" "$out" "${words[@]}"'
    said = subprocess.run(["bash", "-c", told], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-2:] == [hostile, hostile]
    assert list(tmp_path.iterdir()) == []
    for wrong in (
        {"name": "a\n#SBATCH --uid=0"},
        {"partition": "gpu; rm"},
        {"memory": "all"},
        {"time": "tomorrow"},
        {"allocator": "x:1; rm"},
    ):
        with pytest.raises(MistakesError):
            validate(slurm.Job, wrong, "the test")


def test_a_preparation_comes_before_the_training_and_asks_for_no_gpu():
    job = validate(slurm.Job, CASES["prepare"][0], "the test")
    before = rendered("prepare")
    assert "gpus" not in before and "--partition=cpu" in before and "data prepare" in before
    assert "train" not in before.replace("training", "")
    with pytest.raises(UserError, match="Phases prepare their data themselves"):
        slurm.preparation(job, Work(("x",), "runs/x", phases=True))


def test_phases_stay_on_one_node():
    for wrong in ({"nodes": 2}, {"array": ("seed=1", "seed=2")}):
        with pytest.raises(UserError, match="one node"):
            slurm.script(slurm.Job(**wrong), Work(("x",), "runs/x", phases=True))


SRUN = """#!/usr/bin/env bash
save() {
  mkdir -p run/checkpoints/step_$1
  touch run/checkpoints/step_$1/manifest.json
  echo '{"state": "interrupted"}' >run/status.json
  exit 1
}
trap 'save $STEP' USR1
touch ready
for _ in {1..600}; do sleep 0.1; done
"""


@pytest.mark.parametrize(("step", "code", "asked"), [("000002", 0, "requeue 1\n"), ("000001", 75, "")])
def test_a_start_that_did_nothing_is_not_put_back_into_the_queue(tmp_path, step, code, asked):
    """The script with stand-ins for Slurm's commands; tests/test_slurm_real.py has a real Slurm."""
    (tmp_path / "run" / "checkpoints" / "step_000001").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step_000001" / "manifest.json").touch()
    commands = {"srun": SRUN, "scontrol": '#!/bin/sh\n[ "$1" = show ] && echo here || echo "$@" >>asked\n'}
    for name, text in commands.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "here", "SLURM_NNODES": "1", "STEP": step}
    environment["PATH"] = f"{tmp_path}:/usr/bin:/bin"
    text = slurm.script(slurm.Job(activate=None, folder=str(tmp_path)), Work(("recipe.yaml",), "run"))
    (tmp_path / "asked").touch()
    job = subprocess.Popen(["bash", "-c", text], env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    said = job.communicate(timeout=60)[0]
    assert job.returncode == code, said
    assert (tmp_path / "asked").read_text() == asked
    assert ("nothing was saved in this start" in said) == (code == 75)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for case in CASES:
        (GOLDEN / f"{case}.sh").write_text(rendered(case))
