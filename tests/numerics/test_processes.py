"""One process or several: the same batches, gradients, losses, ranks and checkpoints; shown with real processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stores import store_of

SCRIPT = Path(__file__).with_name("shares.py")


def torchrun(processes, *words, **environment):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *words]
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture
def store(tmp_path):
    generator = np.random.default_rng(0)
    histories = [generator.integers(1, 61, generator.integers(4, 40)).tolist() for _ in range(50)]
    return store_of(tmp_path / "store", histories, items=60)


@pytest.fixture
def found(store, tmp_path):
    """What one, two and four processes find, and two once more."""
    results = {}
    for name, processes in (("1", 1), ("2", 2), ("4", 4), ("2 again", 2)):
        done = torchrun(processes, str(SCRIPT), str(store.folder), str(tmp_path / name))
        assert not done.returncode, done.stderr
        assert "Warning" not in done.stderr, done.stderr
        results[name] = load_file(tmp_path / name)
    return results


def of(found, kind):
    return {key: value for key, value in found.items() if f"/{kind}" in key}


@pytest.mark.timeout(1200)
def test_one_two_and_four_processes_agree(found):
    """One test, so that its processes are started once however many workers run the tests."""
    for processes in ("2", "4"):
        first_gradients_agree(found["1"], found[processes])
        losses_agree(found["1"], found[processes])
        checkpoints_agree(found["1"], found[processes])
        ranks_agree(found["1"], found[processes])
    assert all(torch.equal(value, found["2 again"][name]) for name, value in found["2"].items())


def first_gradients_agree(one, several):
    gradients = of(one, "gradient")
    assert gradients.keys() == of(several, "gradient").keys() and len(gradients) > 100
    for name, gradient in gradients.items():
        assert (gradient - several[name]).norm() <= 1e-6 * max(1e-3, float(gradient.norm())), name


def losses_agree(one, several):
    for kind, allowed in (("losses", 1e-5), ("norms", 1e-3)):
        for name, values in of(one, kind).items():
            assert several[name].tolist() == pytest.approx(values.tolist(), rel=allowed), name


def ranks_agree(one, several):
    """Weights that were trained apart differ in their last digits, by which two items may change places, and hardly ever do."""
    for name, ranks in of(one, "ranks").items():
        apart = (ranks - several[name]).abs()
        assert apart.max() <= 1 and (apart > 0).float().mean() <= 0.05, name


def checkpoints_agree(one, several):
    kept, others = of(one, "checkpoint"), of(several, "checkpoint")
    assert {name: t.shape for name, t in kept.items()} == {name: t.shape for name, t in others.items()}
    # No loss depends on the bias of keys: its gradient is rounding alone, which Adam blows up to steps of its full size.
    weights = [name for name in kept if "/model/" in name and not name.endswith("k.bias")]
    assert max(float((kept[name] - others[name]).abs().max()) for name in weights) < 2e-4
