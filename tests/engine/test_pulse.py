"""Who is named when processes wait in vain; with real processes, of which one does nothing for a while."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, time
import torch
from turborec.engine import world
from turborec.errors import UserError

stuck, how = int(sys.argv[1]), sys.argv[2]
try:
    with world.joined():
        for step in range(1, 4):
            world.totals([1.0])
            world.passed(step)
        if how == "slow":
            time.sleep(2 * (world.rank() == stuck))
        elif world.rank() == stuck:
            time.sleep(8)
            raise SystemExit(0)
        world.wait()
        print(f"process {world.rank()} is done", flush=True)
except UserError as error:
    sys.exit(f"process {world.rank()} said: {error}")
"""

pytestmark = pytest.mark.slow


def told(folder, stuck, how, **environment):
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"]
    given = {**os.environ, "OMP_NUM_THREADS": "1", "TURBOREC_PATIENCE": "4", **environment}
    given["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2] / "src"), *sys.path])
    done = subprocess.run([*command, str(folder / "script.py"), str(stuck), how], env=given, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize("store", ["the leader's", "the launcher's"])
@pytest.mark.parametrize("stuck", [0, 2])
def test_a_process_that_lives_but_does_not_come_is_named(tmp_path, stuck, store):
    said = told(tmp_path, stuck, "stuck", TORCH_DISABLE_SHARE_RDZV_TCP_STORE=str(int(store == "the leader's")))
    assert f"process {stuck} hangs (alive, but where it was" in said and "after step 3)" in said, said
    assert all(f"process {other} hangs" not in said for other in {0, 1, 2} - {stuck})


def test_a_process_that_comes_late_is_waited_for(tmp_path):
    said = told(tmp_path, 1, "slow")
    assert all(f"process {rank} is done" in said for rank in range(3)) and "hangs" not in said, said
