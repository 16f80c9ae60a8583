"""What the processes of a run do when they part; what they tell one another is shown by numerics/test_processes.py."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stores import store_of


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_processes_part_without_waiting_for_one_another_s_threads(tmp_path):
    """Before what holds their group let go of it, one pair of ten hung or was aborted (docs/log.md)."""
    generator = np.random.default_rng(0)
    histories = [generator.integers(1, 61, generator.integers(4, 40)).tolist() for _ in range(50)]
    store = store_of(tmp_path / "store", histories, items=60)
    command = [sys.executable, str(Path(__file__).with_name("parting.py")), str(store.folder), "60"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert not done.returncode, done.stderr
