"""What is asked of the machine, seen from outside."""

import os
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

MANY_SHAPES = """
import sys
import torch
from turborec.engine import hardware
torch.set_num_threads(1)
held = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
weight = torch.ones(64, 256, dtype=torch.bfloat16)
if "few" in sys.argv:
    hardware.remember_few_shapes()
torch.ones(5, 64, dtype=torch.bfloat16) @ weight
before = held()
for rows in range(6000, 6600):
    torch.ones(rows, 64, dtype=torch.bfloat16) @ weight
print(held() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read as Linux tells it")
def test_code_of_shapes_that_come_once_is_not_kept():
    free = {name: value for name, value in os.environ.items() if name != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    all_kept, few = (
        int(subprocess.check_output([sys.executable, "-c", MANY_SHAPES, *how], env=free, text=True)) for how in ((), ("few",))
    )
    if all_kept < 500 * 2**20:
        pytest.skip("this processor's products in bfloat16 have no code of their own for each shape")
    assert few < 0.6 * all_kept


@pytest.mark.skipif(sys.platform != "linux", reason="this allocator is glibc's")
def test_freed_memory_that_was_kept_is_given_back():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 200 * 2**20
