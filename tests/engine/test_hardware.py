"""What is asked of the machine, seen from outside."""

import subprocess
import sys

import pytest

FREED = """
import torch
from turborec.engine import hardware
held = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
assert hardware.keep_freed_memory()
kept = [torch.zeros(2**16) for _ in range(1024)]  # 256 MiB, with something behind it
behind = torch.zeros(2**16)
del kept
before = held()
hardware.collect_garbage(torch.device("cpu"))
print(before - held())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="this allocator is glibc's")
def test_freed_memory_that_was_kept_is_given_back():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 200 * 2**20
