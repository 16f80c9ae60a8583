"""Several processes on this machine, by torchrun's own engine, with what it needs to restart them and to pass signals on."""

import json
import logging
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from turborec.engine.hardware import cores
from turborec.engine.log import write_status
from turborec.errors import UserError

HANDED_ON = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""Signals that are passed to the processes, which save and end; the launcher would otherwise die of some."""

SETTINGS = {
    # Restarted processes would otherwise meet at the address of those before them, and hang (pytorch issue 135712).
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    # Seconds until processes that were warned are killed: torchrun's half a minute may be too short for what they save.
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600",
}

TRAIN = ("-m", "turborec", "train")
"""The program that is started, in the words of Python's command line."""


def run(processes: int, words: list[str], folder: Path, restarts: int = 0, program: tuple[str, ...] = TRAIN) -> int:
    """Train in so many processes, in the run folder that `words`, those of the program, name: the exit code that the run meant.

    All start anew, up to `restarts` times, when one fails.
    """
    began = datetime.now(UTC).replace(microsecond=0)
    return _meant(folder, _run(processes, words, folder, restarts, program), began)


def _run(processes: int, words: list[str], folder: Path, restarts: int, program: tuple[str, ...]) -> int:
    """0 if all ended well, else the exit code of the first that did not."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if processes < 1:
        raise UserError(f"The processes must be at least 1, got {processes}.")
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // processes))}
    for name, value in {**SETTINGS, **threads}.items():
        os.environ.setdefault(name, value)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="turborec",
        max_restarts=restarts,
        monitor_interval=0.2,
        signals_to_handle=HANDED_ON,
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its lines say no more than ours
    before = {number: signal.getsignal(number) for number in map(signal.Signals.__getitem__, HANDED_ON.split(","))}
    try:
        elastic_launch(config, sys.executable)(*program, *words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode  # it has said itself what was wrong
        reason = f"process {rank} was killed by {signal.Signals(-failure.exitcode).name}, and the others were stopped"
        print(f"turborec: {reason}.", file=sys.stderr)
        if folder.is_dir():
            write_status(folder, "failed", reason, 128 - failure.exitcode)  # the others could only say that it was gone
        return 128 - failure.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    finally:
        for number, handler in before.items():  # torch's own would outlive its processes
            signal.signal(number, handler)
    return 0


def _meant(folder: Path, ended: int, began: datetime) -> int:
    """The exit code that the run in `folder` meant to end with: a launcher that was stopped by a signal cannot know it.

    A mistake (2) is one, whatever an earlier start of the run ended with.
    """
    if ended in (0, 2):
        return ended
    try:
        facts = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        state, code, said = facts["state"], int(facts["code"]), datetime.fromisoformat(facts["time"])
    except (OSError, ValueError, KeyError, TypeError):
        return ended
    return code if state == "interrupted" and said >= began else ended
