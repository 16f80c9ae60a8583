"""Measure parts that every model shares beside the usual way to do them: python benchmarks/parts.py NAME --store STORE.

The ranking stage of an evaluation against `topk` and against a full sort of every user's scores; the data path against
one sample at a time from a Dataset. Rows go to results/speed/<name>-parts.json.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rows import Row, write
from turborec.bench import eager, step
from turborec.bench.step import Contestant, Work
from turborec.contract import DotProduct
from turborec.data.loader import Batches, TrainingBatches, evaluation_batches
from turborec.data.store import Store, open_store
from turborec.engine import hardware, log
from turborec.ranking import Ranker, Targets, UserBatch

CPU = torch.device("cpu")
WIDTH = 64
USERS = 1024


def vectors(store: Store) -> tuple[Tensor, Tensor]:
    """Random users and items: [U, D] and [V + 1, D]."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(rows, WIDTH, generator=generator) for rows in (store.num_users, store.num_items + 1))  # type: ignore[return-value]


def counting(store: Store) -> Iterator[Work]:
    """turborec's ranking: exact mid-ranks of every target, history masked and kept, without top lists."""
    users, items = vectors(store)
    targets = Targets.of(store, "test", store.users_of("test"))
    scorer = DotProduct(lambda batch: users[batch.users], items)
    while True:
        for batch in _batches(store):
            Ranker(store, "test", targets, (), 2**28, CPU).rank(scorer, batch)
            yield Work(1, len(batch.users), len(batch.users), len(batch.users))


def usual(store: Store, full: bool) -> Iterator[Work]:
    """Scores of a batch at once, seen items set to minus infinity, then the ten best or a sort of all."""
    users, items = vectors(store)
    while True:
        for batch in _batches(store):
            rows = batch.users.numpy()
            starts, ends = store.histories.offsets[rows], store.span("test", rows)[0]
            seen_rows = np.repeat(np.arange(len(rows)), ends - starts)
            seen = np.concatenate([store.histories.items[a:b] for a, b in zip(starts, ends, strict=True)])
            target = torch.from_numpy(np.asarray(store.histories.items[ends], dtype=np.int64))
            scores = users[batch.users] @ items.T
            scores[torch.from_numpy(seen_rows), torch.from_numpy(seen.astype(np.int64))] = -math.inf
            scores[:, 0] = -math.inf
            listed = scores.argsort(1, descending=True) if full else scores.topk(10).indices
            (listed == target[:, None]).nonzero()
            yield Work(1, len(rows), len(rows), len(rows))


def _batches(store: Store) -> Iterator[UserBatch]:
    """The test users, some at a time, as an evaluation shows them; their histories do not matter here."""
    return evaluation_batches(store, "test", Batches(max_length=1, tokens=USERS))


def planned(store: Store, batches: Batches) -> Iterator[Work]:
    """turborec's batches, made one after the other."""
    plan, number = TrainingBatches(store, batches, 1), 0
    while True:
        epoch = plan.epoch(number)
        for place in range(len(epoch)):
            batch = epoch.batch(place)
            yield Work(1, batch.num_targets(), int(batch.lengths.sum()), batch.items.numel())
        number += 1


def one_by_one(store: Store, batches: Batches) -> Iterator[Work]:
    """The same rows from a Dataset, one sample at a time, padded to the full length."""
    plan, number = TrainingBatches(store, batches, 1), 0
    while True:
        epoch = plan.epoch(number)
        rows = max(1, round(len(epoch.rows.users) / len(epoch)))
        for events, targets in DataLoader(eager.Rows(store, epoch.rows, batches.max_length), rows, shuffle=True):
            yield Work(1, int((targets > 0).sum()), int((events > 0).sum()), events.numel())
        number += 1


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=6400)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.0)
    chosen = parser.parse_args()
    hardware.keep_freed_memory()
    store, busy, environment = open_store(chosen.store), step.busy(), log.environment()
    batches = Batches(max_length=chosen.length, tokens=chosen.tokens)
    steps = {
        "counting": counting(store),
        "topk": usual(store, full=False),
        "sort": usual(store, full=True),
        "planned": planned(store, batches),
        "dataset": one_by_one(store, batches),
    }
    contestants = [Contestant(name, work, CPU) for name, work in steps.items()]
    measured = {one.name: one for one in step.compete(contestants, chosen.rounds, chosen.seconds)}
    ratios = {
        "evaluation_vs_topk": step.ratio(measured["counting"], measured["topk"]),
        "evaluation_vs_sort": step.ratio(measured["counting"], measured["sort"]),
        "data_path_vs_dataset": step.ratio(measured["planned"], measured["dataset"], "events"),
    }
    values = {}
    for name, median in ratios.items():
        values |= {name: median.value, f"{name}_low": median.low, f"{name}_high": median.high}
    values |= {f"{name}_ms": 1e3 * one.seconds("cpu") / one.total().steps for name, one in measured.items()}
    row: Row = {
        "kind": "speed",
        "data": chosen.name,
        "model": "parts",
        "recipe": None,
        "variant": "default",
        "seed": 0,
        "protocol": {"width": WIDTH, "users": USERS, "length": chosen.length, "tokens": chosen.tokens, "busy": busy},
        "values": values,
        "provenance": environment,
    }
    print(write(f"speed/{chosen.name}-parts", [row]))


if __name__ == "__main__":
    main()
