"""The time of whole optimizer steps: contestants take turns, round by round, in one process on one machine.

A step is everything from the store to the changed weights: batch, forward, backward, clipping, optimizer.
"""

import math
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, cast

import torch

from turborec.assembly import Assembly
from turborec.contract import Batch
from turborec.engine import loop
from turborec.engine.ahead import Batches
from turborec.engine.replay import Replays
from turborec.stores import training_batches

SETTLED = 10
"""Steps in a row without a new graph, after which compilation counts as done."""


@dataclass(frozen=True)
class Work:
    """What steps did."""

    steps: int
    targets: int  # predictions that entered the loss
    events: int  # real events shown
    positions: int  # positions computed, padding included
    rates: float = 0.0  # learning rates of the steps, summed

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


@dataclass(frozen=True)
class Contestant:
    """A way of training, as an endless row of optimizer steps."""

    name: str
    steps: Iterator[Work]
    device: torch.device
    compiled: bool = False  # by torch.compile, in part or whole
    recorded: bool = False  # by CUDA, and replayed


@dataclass(frozen=True)
class Sample:
    """One contestant's part of one round."""

    work: Work
    wall: float  # seconds
    cpu: float  # seconds of processor time, of all threads together


@dataclass
class Measurement:
    """What was seen of one contestant."""

    name: str
    device: torch.device
    samples: list[Sample] = field(default_factory=list)
    recompiled: int = 0  # graphs compiled while it was measured, after its warm-up

    def per_second(self, quantity: str, clock: str = "wall") -> list[float]:
        """Targets, events, positions or steps a second of each round."""
        return [float(getattr(s.work, quantity) / getattr(s, clock)) for s in self.samples]

    def total(self) -> Work:
        """The work of all rounds together."""
        done = self.samples[0].work
        for sample in self.samples[1:]:
            done = done + sample.work
        return done

    def seconds(self, clock: str = "wall") -> float:
        """The time of all rounds together."""
        return float(sum(getattr(sample, clock) for sample in self.samples))


@dataclass(frozen=True)
class Median:
    """A median over rounds, and the order statistics that hold it with at least 95 % confidence (the sign test)."""

    value: float
    low: float
    high: float


def compete(contestants: list[Contestant], rounds: int = 6, seconds: float = 2.0, warm_up: int = 3) -> list[Measurement]:
    """Let every contestant take `warm_up` steps, then `rounds` turns of about `seconds` each, in an order that alternates.

    Fewer than six rounds cannot give a median with 95 % confidence.
    """
    measured = []
    for contestant in contestants:
        _warm(contestant, warm_up, 2 * seconds * warm_up)
        measured.append(Measurement(contestant.name, contestant.device))
    for number in range(rounds):
        turn = list(zip(contestants, measured, strict=True))
        for contestant, measurement in turn if number % 2 == 0 else reversed(turn):
            graphs = compiled()[0]
            measurement.samples.append(_turn(contestant, seconds))
            measurement.recompiled += compiled()[0] - graphs
    return measured


def _warm(contestant: Contestant, steps: int, seconds: float) -> None:
    """Some steps, fewer where one is long; of one that is compiled or recorded as many as it takes until nothing is anew."""
    if contestant.compiled or contestant.recorded:
        quiet = 0
        while quiet < SETTLED:
            graphs = compiled()[0]
            next(contestant.steps)
            quiet = quiet + 1 if compiled()[0] == graphs else 0
        return
    began = time.perf_counter()
    for _ in range(steps):
        next(contestant.steps)
        if time.perf_counter() - began > seconds:
            break


def compiled() -> tuple[int, int]:
    """Graphs compiled and steps recorded so far by this process, and the breaks between graphs."""
    compiler: Any = sys.modules.get("torch._dynamo.utils")
    if not compiler:
        return Replays.met, 0
    graphs = int(compiler.counters["stats"]["unique_graphs"])
    return graphs + Replays.met, sum(compiler.counters["graph_break"].values())


def median(values: list[float]) -> Median:
    """The median with its interval; with fewer than six values the interval is their whole range."""
    ordered, n = sorted(values), len(values)
    rank, tail = 0, 0.5**n
    while 2 * (tail + math.comb(n, rank + 1) * 0.5**n) <= 0.05:
        rank += 1
        tail += math.comb(n, rank) * 0.5**n
    return Median(statistics.median(ordered), ordered[rank], ordered[n - 1 - rank])


def ratio(fast: Measurement, slow: Measurement, quantity: str = "targets", clock: str = "cpu") -> Median:
    """How many times the rate of `slow` that of `fast` is, from the rounds in pairs.

    The median is taken of logarithms, so that the ratio the other way round is one over it.
    """
    return ratio_of(fast.per_second(quantity, clock), slow.per_second(quantity, clock))


def ratio_of(rates: list[float], others: list[float]) -> Median:
    """The median of one list of rates over another, round by round."""
    found = median([math.log(a / b) for a, b in zip(rates, others, strict=True)])
    return Median(math.exp(found.value), math.exp(found.low), math.exp(found.high))


def training(assembly: Assembly) -> Iterator[Work]:
    """The recipe's own optimizer steps, epoch after epoch."""
    batches = training_batches(assembly.recipe, assembly.store)
    stage = assembly.recipe.stages[0]
    state = loop.start(assembly.model, stage, assembly.device)
    while True:
        for number in range(stage.epochs):
            seen = _Seen(batches.epoch(number))
            for record in loop.fit(state, seen, stage, assembly.device):
                yield Work(1, record.targets, *seen.made.pop(record.position.step - 1), rates=record.lr)
            state.position.epoch, state.position.step = number + 1, 0
        state.position.epoch = 0


class _Seen:
    """Batches that remember how much each held: its events and its positions."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self.key, self.number = batches.key, batches.number
        self.made: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._batches)

    def batch(self, step: int) -> Batch:
        """The batch of this step."""
        batch: Any = self._batches.batch(step)
        self.made[step] = batch.size()
        return cast("Batch", batch)


def _turn(contestant: Contestant, seconds: float) -> Sample:
    """At least one step, and as many as fit into `seconds`."""
    _wait(contestant.device)
    wall, cpu = time.perf_counter(), time.process_time()
    work = next(contestant.steps)
    while time.perf_counter() - wall < seconds:
        work = work + next(contestant.steps)
    _wait(contestant.device)
    return Sample(work, time.perf_counter() - wall, time.process_time() - cpu)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
