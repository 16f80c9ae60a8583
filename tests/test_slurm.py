"""The scripts for Slurm: as they were when somebody last read them, sound as shell, and safe with whatever a user names."""

import subprocess
import sys
from pathlib import Path

import pytest

from turborec.launch import slurm
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
}


def rendered(name):
    tree, words, out = CASES[name]
    return slurm.script(validate(slurm.Job, tree, "the test"), words, out)


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
    text = slurm.script(slurm.Job(activate=None, folder=str(tmp_path)), [hostile], hostile)
    # All up to the start of the training, with its two commands replaced by echoes.
    head = text.split("srun --kill")[0].replace("scontrol show hostnames", "echo")
    environment = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "here", "PATH": "/usr/bin:/bin"}
    told = head + 'printf "%s\\n" "$out" "${words[@]}"'
    said = subprocess.run(["bash", "-c", told], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[-2:] == [hostile, hostile]
    assert list(tmp_path.iterdir()) == []
    for wrong in ({"name": "a\n#SBATCH --uid=0"}, {"partition": "gpu; rm"}, {"memory": "all"}, {"time": "tomorrow"}):
        with pytest.raises(MistakesError):
            validate(slurm.Job, wrong, "the test")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for case in CASES:
        (GOLDEN / f"{case}.sh").write_text(rendered(case))
