"""What the processes of a run use while they train: time, memory, processors, and how long they wait for their data."""

import os
import time
from contextlib import suppress

import torch

from turborec.engine import world
from turborec.engine.hardware import peak_memory

EVERY = max(1, int(os.environ.get("TURBOREC_TOLD_STEPS", "500")))
"""Steps of a long epoch after which the log says what they used."""

KIND, CLOCK = "usage", "clock"
"""Of the records in `metrics.jsonl` that say what was used, and how long parts of an epoch took."""

MEASURED = (KIND, CLOCK)
"""Nothing in such records is the same when a run is repeated."""

Usage = dict[str, float]


def due(step: int, steps: int) -> bool:
    """Whether to tell after this step of an epoch: its last steps are told of at its end."""
    return step % EVERY == 0 and steps - step >= EVERY // 2


class Monitor:
    """What this process has used since it was last asked; it only adds up while steps are done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begin()

    def _begin(self) -> None:
        self._steps = self._targets = 0
        self._waited = 0.0
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def add(self, waited: float, targets: int) -> None:
        """Count a step that waited so many seconds for its batch and predicted so many targets."""
        self._steps += 1
        self._waited += waited
        self._targets += targets

    def read(self, exchange_seconds: float | None = None) -> tuple[Usage, list[Usage]]:
        """Of all processes together, and of each; what is counted from here on is asked for the next time.

        `exchange_seconds`: what the exchange of a step takes by itself, where there is one. Shares are of the time that passed;
        that of the processors is of as many as there are threads.
        """
        seconds = time.perf_counter() - self._wall
        own = {
            **memory(self._device),
            "processor_share": (time.process_time() - self._cpu) / seconds / torch.get_num_threads(),
            "data_wait_share": self._waited / seconds,
            **_share_of_accelerator(self._device),
        }
        each: list[Usage] = world.gathered(own)
        together = {name: max(one[name] for one in each) for name in own}
        for name in ("processor_share", "accelerator_share"):
            if name in together:
                together[name] = sum(one[name] for one in each) / len(each)
        if len(each) > 1:
            together |= {f"peak_mib_{rank}": one["peak_mib"] for rank, one in enumerate(each)}
        if exchange_seconds is not None:
            together["communication_share"] = exchange_seconds * self._steps / seconds
        together["steps_per_second"] = self._steps / seconds
        together["targets_per_second"] = self._targets / seconds  # predicted by all processes
        self._begin()
        return together, each


class Clock:
    """Seconds since it was read the last time: those that passed, and those of this process's processors."""

    def __init__(self) -> None:
        self._read = time.perf_counter(), time.process_time()
        self._noted: Usage = {}

    def note(self, what: str, seconds: float) -> None:
        """Tell of a part of what is read next."""
        self._noted[f"{what}_seconds"] = self._noted.get(f"{what}_seconds", 0.0) + seconds

    def read(self, what: str) -> Usage:
        """Them as `WHAT_seconds` and `WHAT_cpu_seconds`, with what was noted since."""
        now = time.perf_counter(), time.process_time()
        wall, cpu = now[0] - self._read[0], now[1] - self._read[1]
        self._read, noted, self._noted = now, self._noted, {}
        return {f"{what}_seconds": wall, f"{what}_cpu_seconds": cpu, **noted}


def memory(device: torch.device) -> Usage:
    """The most MiB that this process has held so far, of the accelerator too where there is one."""
    found = {"peak_mib": peak_memory() / 2**20}
    if device.type == "cuda":
        found["accelerator_peak_mib"] = torch.cuda.max_memory_reserved(device) / 2**20
    return found


def told(together: Usage, each: list[Usage]) -> str:
    """A line for the log."""
    accelerator = "accelerator_peak_mib" in together
    held = [f"{one['peak_mib']:,.0f}" + (f" ({one['accelerator_peak_mib']:,.0f})" if accelerator else "") for one in each]
    parts = [
        f"{together['targets_per_second']:,.0f} targets/s",
        f"most memory {' + '.join(held)} MiB{' (accelerator)' if accelerator else ''}",
        f"processors {together['processor_share']:.0%} busy",
    ]
    if "accelerator_share" in together:
        parts.append(f"accelerators {together['accelerator_share']:.0%} busy")
    parts.append(f"{together['data_wait_share']:.1%} of the time waiting for data")
    if "communication_share" in together:
        parts.append(f"{together['communication_share']:.0%} for the exchange, were it by itself")
    return ", ".join(parts)


def _share_of_accelerator(device: torch.device) -> Usage:
    """How busy it is at this moment, where NVIDIA's library is there to say."""
    if device.type == "cuda":
        with suppress(Exception):  # no pynvml, or a device of which it cannot tell (MIG): no reason to stop a training
            return {"accelerator_share": torch.cuda.utilization(device) / 100}
    return {}
