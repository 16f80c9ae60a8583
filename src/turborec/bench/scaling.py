"""How the rate of training grows with processes: at the same global batch (strong) and at the same batch of each (weak).

Trainings that run beside one another and exchange nothing (apart) show what the machine itself allows. Every measurement is in
processes of its own, all kinds in turns.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal

from turborec.assembly import assemble
from turborec.bench import step
from turborec.data.store import Store
from turborec.engine import hardware, log, loop, world
from turborec.errors import UserError
from turborec.recipes import AnyRecipe
from turborec.stores import training_batches

Mode = Literal["strong", "weak", "apart"]

WARM_UP = 5
"""Steps that do not count."""


@dataclass(frozen=True)
class Sample:
    """One training of some seconds."""

    targets: float  # of all processes together
    steps: int
    seconds: float
    cpu_seconds: float  # of all processes together
    exchange_seconds: float  # a step, by itself
    exchanged_bytes: int  # a step, by each process


def work(recipe: AnyRecipe, store: Store, device: str, seconds: float) -> Sample:
    """Train for so long, as one of the processes: every one of them gets the same answer."""
    hardware.keep_freed_memory()
    assembly = assemble(recipe, store, device)
    stage = assembly.recipe.stages[0]
    plan = training_batches(recipe, store, (world.rank(), world.size()))
    state = loop.start(assembly.model, stage, assembly.device)
    targets = steps = seen = 0
    began = cpu = 0.0
    while True:
        for record in loop.fit(state, plan.epoch(state.position.epoch), stage, assembly.device):
            seen += 1
            if seen == WARM_UP:
                world.wait()
                began, cpu = time.perf_counter(), time.process_time()
            elif seen > WARM_UP:
                targets, steps = targets + record.targets, steps + 1
                # All stop together: the one that is first would leave the others waiting.
                if world.greatest([time.perf_counter() - began > seconds])[0]:
                    took, busy = time.perf_counter() - began, world.totals([time.process_time() - cpu])[0]
                    exchange = state.shares.exchange_seconds() if world.size() > 1 else 0.0
                    return Sample(targets, steps, took, busy, exchange, state.shares.nbytes * (world.size() > 1))
        state.position.epoch, state.position.step = (state.position.epoch + 1) % stage.epochs, 0


def measure(recipe: AnyRecipe, store: Store, processes: list[int], rounds: int, seconds: float, device: str) -> dict[str, Any]:
    """Strong and weak scaling over these numbers of processes: plain data, ready to be written as JSON."""
    if not processes or processes[0] != 1:
        raise UserError(f"The numbers of processes must begin with 1, which the others are compared with: got {processes}.")
    warning, before = hardware.busy(), log.environment()
    modes: tuple[Mode, ...] = ("strong", "weak", "apart")
    cases: list[tuple[int, Mode]] = [(1, "strong"), *((n, mode) for mode in modes for n in processes[1:])]
    samples: dict[tuple[int, Mode], list[Sample]] = {case: [] for case in cases}
    for number in range(rounds):
        for count, mode in cases if number % 2 == 0 else reversed(cases):
            trained = _trained_apart if mode == "apart" else _trained
            samples[count, mode].append(trained(count, _batches(recipe, count, mode), store, seconds, device))
    rows: list[dict[str, Any]] = []
    for (count, mode), some in samples.items():
        rates = [sample.targets / sample.seconds for sample in some]
        alone = [sample.targets / sample.seconds for sample in samples[1, "strong"]]
        share = [sample.exchange_seconds / (sample.seconds / sample.steps) for sample in some]
        row = {
            "processes": count,
            "mode": mode,
            "tokens": recipe.batches.tokens if mode == "apart" else _batches(recipe, count, mode).batches.total(count),
            "targets_per_second": asdict(step.median(rates)),
            "speedup": asdict(step.ratio_of(rates, alone)),
            "communication_share": step.median(share).value,
            "exchanged_mib": some[0].exchanged_bytes / 2**20,
            "step_ms": 1e3 * step.median([sample.seconds / sample.steps for sample in some]).value,
            "samples": [asdict(sample) for sample in some],
        }
        rows.append(row)
    plan = {"processes": processes, "rounds": rounds, "seconds": seconds}
    alone_step, exchanged = (
        rows[0]["step_ms"] / 1e3,
        max(sample.exchanged_bytes for some in samples.values() for sample in some),
    )
    predictions = [
        {"interconnect": name, "processes": n, "speedup": predicted(alone_step, exchanged, n, *link)}
        for name, link in INTERCONNECTS.items()
        for n in (2, 4, 8)
        if exchanged
    ]
    facts = {"warning": warning, "provenance": before, "data": store.card["counts"]}
    return {"rows": rows, "predicted": predictions, "plan": plan, **facts}


def predicted(step_seconds: float, exchanged: int, processes: int, gigabytes: float, latency: float) -> float:
    """The speed-up of weak scaling over an interconnect, if nothing of the exchange is hidden: a prediction, not a measurement.

    A ring sends 2 (n - 1) / n of the bytes over each link, and 2 (n - 1) messages one after the other.
    """
    sent = 2 * (processes - 1) / processes * exchanged / (gigabytes * 1e9) + 2 * (processes - 1) * latency
    return processes * step_seconds / (step_seconds + sent)


INTERCONNECTS = {
    "NVLink 4 (450 GB/s)": (450.0, 5e-6),
    "PCIe 4 x16 (25 GB/s)": (25.0, 10e-6),
    "100 Gbit/s Ethernet (11 GB/s)": (11.0, 30e-6),
    "10 Gbit/s Ethernet (1.1 GB/s)": (1.1, 50e-6),
}
"""Gigabytes a second of a link in one direction, and seconds of a message: of vendors' sheets, not measured."""


def _batches(recipe: AnyRecipe, processes: int, mode: str) -> AnyRecipe:
    """The recipe with one global batch for all, or with the recipe's batch for each process."""
    owner = "run" if mode == "strong" else "process"
    return recipe.model_copy(update={"batches": recipe.batches.model_copy(update={"tokens_of": owner})})


def _trained_apart(count: int, recipe: AnyRecipe, store: Store, seconds: float, device: str) -> Sample:
    """So many trainings at the same time, of one process each, as if they were one."""
    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(lambda _: _trained(1, recipe, store, seconds, device), range(count)))
    took = sum(sample.seconds for sample in found) / count
    targets = sum(sample.targets / sample.seconds for sample in found) * took
    return Sample(
        targets=targets,
        steps=sum(sample.steps for sample in found) // count,
        seconds=took,
        cpu_seconds=sum(sample.cpu_seconds for sample in found),
        exchange_seconds=0.0,
        exchanged_bytes=0,
    )


def _trained(processes: int, recipe: AnyRecipe, store: Store, seconds: float, device: str) -> Sample:
    """One measurement, in processes of its own with one thread each."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        file.write(recipe.model_dump_json())
        file.flush()
        command = [*torchrun, "-m", "turborec.bench", "--scaling-of", file.name, "--seconds", str(seconds)]
        command += ["--store", str(store.folder), "--device", device]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"A training in {processes} processes failed: {done.stderr.strip()[:1500]}")
    return Sample(**json.loads(done.stdout.strip().splitlines()[-1]))
