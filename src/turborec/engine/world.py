"""The processes of one run: which of them this is, and what they tell one another. A process that is alone tells nobody.

torchrun starts them and writes into the environment who each of them is. Rank 0 leads: it alone writes files, and whatever
depends on a clock, a name or a signal is its word. What is told travels as JSON: nothing here is pickled.
"""

import gc
import json
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol
from weakref import WeakSet

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from turborec.engine.pulse import Pulse
from turborec.errors import UserError

PATIENCE = timedelta(seconds=float(os.environ.get("TURBOREC_PATIENCE", "600")))
"""How long a process waits for the others before it gives up: longer than their steps, validations and checkpoints differ."""

_pulse: Pulse | None = None
"""The signs of life of this process while it has joined others."""

_holders: "WeakSet[Holder]" = WeakSet()
"""What must let go of the group of processes before it is left."""

_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "ncclRemoteError",
    "NCCL communicator was aborted",
)


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def leads() -> bool:
    """Whether this is the process that writes files and decides."""
    return rank() == 0


def local_device(name: str) -> str:
    """The device of this process: with several processes and CUDA, the accelerator of its own."""
    if size() > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that torchrun has started while the block runs, where it has.

    Raises `UserError` where another of them is gone or cannot be reached in time: whatever stopped it is in its own words.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        if (own := int(os.environ["LOCAL_RANK"])) >= (there := torch.cuda.device_count()):
            raise UserError(
                f"There are {there} accelerators here and more processes than that: start one for each of them, or set "
                "CUDA_VISIBLE_DEVICES to nothing to compute on processors."
            )
        torch.cuda.set_device(own)
    global _pulse
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
        _pulse = Pulse(rank(), size(), PATIENCE.total_seconds())
        yield
        wait()  # who leaves first would close the connections on which others still wait
    except BaseException as error:
        _forget(error)
        if isinstance(error, RuntimeError) and (why := lost(error)) is not None:
            raise UserError(why) from error
        raise
    finally:
        if _pulse is not None:
            _pulse.stop()
            _pulse = None
        for holder in list(_holders):
            holder.release()
        # If the last to let go were one of torch's reducers, it would wait for the group's threads while they wait for
        # Python's lock, which it holds: a process that never ends, or is aborted while Python shuts down (docs/log.md).
        gc.collect()
        if dist.is_initialized():
            dist.destroy_process_group()


class Holder(Protocol):
    """Something that keeps the group of processes alive."""

    def release(self) -> None:
        """Let go of it: the processes part."""
        ...


def held_by(holder: Holder) -> None:
    """Have this one let go of the group, if it is still there, before the group is left."""
    _holders.add(holder)


def passed(step: int) -> None:
    """Let the others know after which step this process was last heard from, should it be heard from no more."""
    if _pulse is not None:
        _pulse.step = step


def _meet() -> None:
    """Count what all processes do together, in which one may be waited for in vain."""
    if _pulse is not None:
        _pulse.meetings += 1


def told(value: Any) -> Any:
    """What the leader says, as plain JSON: every process gets it."""
    if size() == 1:
        return value
    _meet()
    content = json.dumps(value).encode() if leads() else b""
    length = torch.tensor([len(content)])
    dist.broadcast(length, 0)
    letters = (
        torch.frombuffer(bytearray(content), dtype=torch.uint8) if leads() else torch.empty(int(length), dtype=torch.uint8)
    )
    dist.broadcast(letters, 0)
    return json.loads(bytes(letters.tolist()))


def gathered(value: Any) -> list[Any]:
    """What each process says, as plain JSON, in order of rank: every process gets it."""
    if size() == 1:
        return [value]
    _meet()
    content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size())]
    dist.all_gather(lengths, torch.tensor([len(content)]))
    room = max(int(length) for length in lengths)
    parts = [torch.zeros(room, dtype=torch.uint8) for _ in lengths]
    dist.all_gather(parts, torch.cat([content, content.new_zeros(room - len(content))]))
    return [json.loads(bytes(part[: int(length)].tolist())) for part, length in zip(parts, lengths, strict=True)]


def totals(values: Sequence[float]) -> list[float]:
    """The sum of each number over the processes, in float64: whole numbers up to 2^53 come out exactly."""
    return _reduced(values, dist.ReduceOp.SUM) if size() > 1 else list(values)


def greatest(values: Sequence[float]) -> list[float]:
    """The largest of each number among the processes."""
    return _reduced(values, dist.ReduceOp.MAX) if size() > 1 else list(values)


def added(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over the processes, in its place."""
    if size() > 1:
        _meet()
        dist.all_reduce(tensor)
    return tensor


def add_up(arrays: Sequence[NDArray[np.int64]]) -> None:
    """Replace each array by its sum over the processes."""
    for array in arrays if size() > 1 else ():
        _meet()
        dist.all_reduce(torch.from_numpy(array))


def wait() -> None:
    """Go on when every process has come here."""
    if size() > 1:
        _meet()
        dist.all_reduce(torch.zeros(1))  # a barrier of nccl would want a device


def _reduced(values: Sequence[float], operation: Any) -> list[float]:
    _meet()
    numbers = torch.tensor(list(values), dtype=torch.float64)
    dist.all_reduce(numbers, operation)
    found: list[float] = numbers.tolist()
    return found


def _forget(error: BaseException | None) -> None:
    """Drop what the calls that failed were working on: it may hold the group of processes."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def lost(error: RuntimeError) -> str | None:
    """What an error of communication means; None for any other error."""
    words = str(error)
    if any(word in words for word in _LOST):
        return "Another process has ended, so this one ends too. What stopped it is in its own output; what is saved is intact."
    if "timed out" in words.lower() or "timeout" in words.lower():
        hanging = _pulse.hanging() if _pulse is not None else None
        return (
            f"The other processes were not heard from for {PATIENCE.total_seconds():,.0f} s: {hanging or 'one of them hangs'}, "
            "or the network is down. Everything saved is intact; TURBOREC_PATIENCE=<seconds> waits longer."
        )
    return None
