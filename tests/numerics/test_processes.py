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


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    generator = np.random.default_rng(0)
    histories = [generator.integers(1, 61, generator.integers(4, 40)).tolist() for _ in range(50)]
    return store_of(tmp_path_factory.mktemp("processes") / "store", histories, items=60)


@pytest.fixture(scope="module")
def found(store, tmp_path_factory):
    """What one, two and four processes find, and two once more."""
    folder = tmp_path_factory.mktemp("found")
    results = {}
    for name, processes in (("1", 1), ("2", 2), ("4", 4), ("2 again", 2)):
        done = torchrun(processes, str(SCRIPT), str(store.folder), str(folder / name))
        assert not done.returncode, done.stderr
        assert "Warning" not in done.stderr, done.stderr
        results[name] = load_file(folder / name)
    return results


def of(found, kind):
    return {key: value for key, value in found.items() if f"/{kind}" in key}


@pytest.mark.parametrize("processes", ["2", "4"])
def test_the_first_gradient_is_that_of_one_process(found, processes):
    one, several = of(found["1"], "gradient"), of(found[processes], "gradient")
    assert one.keys() == several.keys() and len(one) > 100
    for name, gradient in one.items():
        assert (gradient - several[name]).norm() <= 1e-6 * max(1e-3, float(gradient.norm())), name


@pytest.mark.parametrize("processes", ["2", "4"])
def test_twenty_losses_and_norms_are_those_of_one_process(found, processes):
    for kind, allowed in (("losses", 1e-5), ("norms", 1e-3)):
        for name, values in of(found["1"], kind).items():
            assert found[processes][name].tolist() == pytest.approx(values.tolist(), rel=allowed), name


@pytest.mark.parametrize("processes", ["2", "4"])
def test_checkpoints_have_the_same_keys_and_shapes(found, processes):
    one, several = of(found["1"], "checkpoint"), of(found[processes], "checkpoint")
    assert {name: t.shape for name, t in one.items()} == {name: t.shape for name, t in several.items()}
    # No loss depends on the bias of keys: its gradient is rounding alone, which Adam blows up to steps of its full size.
    weights = [name for name in one if "/model/" in name and not name.endswith("k.bias")]
    assert max(float((one[name] - several[name]).abs().max()) for name in weights) < 2e-4


@pytest.mark.parametrize("processes", ["2", "4"])
def test_every_rank_is_the_same(found, processes):
    for name, ranks in of(found["1"], "ranks").items():
        assert torch.equal(ranks, found[processes][name]), name


def test_as_many_processes_come_to_the_same_bits(found):
    assert all(torch.equal(value, found["2 again"][name]) for name, value in found["2"].items())
