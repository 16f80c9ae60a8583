"""The kernels for accelerators are the loops: on an accelerator, or interpreted on the processor where Triton is installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


def test_the_kernels_are_the_loops():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).with_name("kernels.py"))]
    done = subprocess.run(command, env=os.environ | interpreted, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "21 passed" in done.stdout, done.stdout[-3000:]
