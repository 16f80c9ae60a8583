"""The training pairs of a store as deterministic batches: each pair once an epoch, with an item that the user has not.

Letters: R pairs, B pairs of a batch.
"""

from functools import partial

import numpy as np
import torch

from turborec.data.batch import Interactions, PairBatch
from turborec.data.loader import ALONE, Batches, Deal, Epoch, hashed, row_keys
from turborec.data.negatives import Unseen
from turborec.data.store import Store
from turborec.data.windows import Int64, WindowRows


def interactions(store: Store) -> Interactions:
    """The distinct pairs of the training part; who repeats an item has it once."""
    training = store.training()
    size = store.num_items + 1
    owners = np.repeat(np.arange(training.num_users, dtype=np.int64), np.diff(training.offsets))
    users, items = np.divmod(np.unique(owners * size + training.items), size)
    return Interactions(*(torch.from_numpy(part.astype(np.int32)) for part in (users, items)))


class PairBatches:
    """The training pairs, planned epoch by epoch: as windows of one event, of which `batches.tokens` make a batch."""

    widths = np.ones(1, np.int64)

    def __init__(self, store: Store, config: Batches, seed: int, deal: Deal = ALONE) -> None:
        """Every process plans the same batches; `deal` says which share of each this one takes."""
        self.config, self.seed, self.deal = config, seed, deal
        self.graph = interactions(store)
        self._unseen = Unseen(self.graph, store.num_users)

    def epoch(self, number: int) -> Epoch:
        """The plan of epoch `number`, counted from 0."""
        key = hashed(self.seed, number)
        generator = np.random.Generator(np.random.PCG64(key % 2**63))
        users = self.graph.users.numpy().astype(np.int64)
        place = np.arange(len(users), dtype=np.int64)
        rows = WindowRows(users, place, place + 1, place + 1)
        shuffled = generator.permutation(len(users))
        size = self.config.total(self.deal[1])
        order = [shuffled[start : start + size] for start in range(0, len(users), size)]
        make = partial(_make, self.graph, self._unseen)
        return Epoch(make, rows, order, [1] * len(order), row_keys(key, rows), key, number, self.deal)


def _make(graph: Interactions, unseen: Unseen, rows: WindowRows, width: int, keys: Int64, key: int) -> PairBatch:
    """The pairs at these places; of an empty row nothing is asked. Nor of who has every item: there is none to prefer."""
    negatives = np.where(rows.lengths > 0, unseen.draw(rows.users, keys), 0)
    items = np.where(negatives > 0, graph.items.numpy()[rows.begin % max(1, len(graph.items))], 0).astype(np.int64)
    as_tensor = torch.from_numpy
    return PairBatch(
        as_tensor(rows.users),
        as_tensor(items),
        as_tensor(negatives),
        as_tensor(keys),
        key,
        targets_count=int(np.count_nonzero(items)),
    )
