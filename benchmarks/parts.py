"""Measure parts that every model shares beside the usual way to do them: python benchmarks/parts.py RECIPE [A.B=VALUE]...

The ranking stage of an evaluation against `topk` and against a full sort of every user's scores; the data path against
one sample at a time from a Dataset. The recipe gives data and batches. The row goes to results/speed/<data>-parts.json.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from measured import arguments, chosen_by, prepared, surroundings, told
from rows import Row, write
from turborec.bench import eager, step
from turborec.bench.step import Contestant, Work
from turborec.contract import DotProduct
from turborec.data.loader import Batches, TrainingBatches, evaluation_batches
from turborec.data.store import Store
from turborec.engine import hardware
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
            yield Work(1, 0, int(epoch.rows.lengths[epoch.order[place]].sum()), batch.items.numel())
        number += 1


def one_by_one(store: Store, batches: Batches) -> Iterator[Work]:
    """The same rows from a Dataset, one sample at a time, padded to the full length."""
    plan, number = TrainingBatches(store, batches, 1), 0
    while True:
        epoch = plan.epoch(number)
        rows = max(1, round(len(epoch.rows.users) / len(epoch)))
        shown = float(epoch.rows.lengths.mean())  # counting each batch's would be a part of the time
        for events, _ in DataLoader(eager.Rows(store, epoch.rows, batches.max_length), rows, shuffle=True):
            yield Work(1, 0, round(shown * len(events)), events.numel())
        number += 1


def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.0)
    chosen = chosen_by(parser)
    hardware.keep_freed_memory()
    busy, environment = surroundings(parser)
    (recipe, store), data = prepared(chosen), chosen.recipe.split("/")[0]
    steps = {
        "counting": counting(store),
        "topk": usual(store, full=False),
        "sort": usual(store, full=True),
        "planned": planned(store, recipe.batches),
        "dataset": one_by_one(store, recipe.batches),
    }
    contestants = [Contestant(name, work, CPU) for name, work in steps.items()]
    measured = {one.name: one for one in step.compete(contestants, chosen.rounds, chosen.seconds)}
    ratios = {
        "evaluation_vs_topk": step.ratio(measured["counting"], measured["topk"]),
        "evaluation_vs_sort": step.ratio(measured["counting"], measured["sort"]),
        "data_path_vs_dataset": step.ratio(measured["planned"], measured["dataset"], "events"),
    }
    values = {name: median.value for name, median in ratios.items()}
    values |= {f"{name}_ms": 1e3 * one.seconds("cpu") / one.total().steps for name, one in measured.items()}
    row: Row = {
        "kind": "speed",
        "data": data,
        "model": "parts",
        "recipe": chosen.recipe,
        "variant": "default",
        "seed": 0,
        "protocol": {
            "work": "1,024 users ranked with vectors of 64 numbers; batches of the recipe made one after the other",
            "rounds": chosen.rounds,
            "seconds": chosen.seconds,
            "overrides": chosen.overrides,
            "counts": store.card["counts"],
            "batches": recipe.batches.model_dump(mode="json"),
            "busy": busy,
        },
        "values": values,
        "intervals": {name: [median.low, median.high] for name, median in ratios.items()},
        "provenance": environment,
    }
    print(write(f"speed/{data}-parts", [row]))


if __name__ == "__main__":
    told(main)
