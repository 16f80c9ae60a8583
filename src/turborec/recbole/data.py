"""RecBole's data as turborec sees them: batches of an epoch by their number, and rows to rank with their histories.

Letters: R rows to rank, P (row, target) pairs, V items. RecBole's ids are turborec's: 1..V, 0 is padding.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turborec.data.store import Histories, Store
from turborec.errors import UserError
from turborec.recbole import shims

Int64 = NDArray[np.int64]

MASKED = "MASK_INDEX"
"""RecBole's field of the masked places of a row; a masked first event is place 0 there, as are unused places: no target."""


@dataclass(frozen=True)
class Rows:
    """A share of a batch: rows of RecBole's, and where they stand in the whole batch."""

    interaction: Any
    users: Tensor  # int64 [B]: the rows' numbers, in the batch or in what is ranked
    key: int  # of the step
    targets: int  # predictions that the share's loss is a mean over
    idle: bool = False  # a row that only keeps a process busy for which there are too few

    def num_targets(self) -> int:
        """How many predictions the share asks for."""
        return self.targets

    def to(self, device: torch.device) -> Self:
        """The same rows on `device`."""
        if self.users.device == device:
            return self
        return replace(self, interaction=self.interaction.to(device), users=self.users.to(device))

    def split(self, parts: int) -> list[Self]:
        """Itself: a step of RecBole's is never accumulated."""
        return [self]

    def nothing(self) -> Self:
        """The same rows, which only keep a process busy."""
        return replace(self, targets=0, idle=True)


@dataclass(frozen=True)
class Epoch:
    """One pass over RecBole's training rows, planned."""

    loader: Any
    order: Int64  # [R] rows in the order of the epoch
    key: int
    number: int  # from 0
    deal: tuple[int, int]  # this process among how many

    def __len__(self) -> int:
        """Batches, which is optimizer steps."""
        return -(-len(self.order) // int(self.loader.step))

    def batch(self, step: int) -> Rows:
        """The share of this process of the batch of a step.

        Every process makes the whole batch with RecBole's own samplers and transforms, seeded by the step, and takes its rows.
        """
        size, (place, processes) = int(self.loader.step), self.deal
        key = hashed(self.key, step)
        shims.seed_rows(key)
        with shims.told():
            whole = self.loader.collate_fn(self.order[step * size : (step + 1) * size])
        numbers = torch.arange(len(whole))[place::processes]
        if not len(numbers):
            return Rows(whole[torch.zeros(1, dtype=torch.int64)], torch.zeros(1, dtype=torch.int64), key, 0, idle=True)
        own = whole if processes == 1 else whole[numbers]
        return Rows(own, numbers, key, int((own[MASKED] > 0).sum()) if MASKED in own else len(own))


@dataclass(frozen=True)
class TrainingRows:
    """RecBole's training part, planned epoch by epoch as a function of the seed."""

    loader: Any
    seed: int
    shuffled: bool
    deal: tuple[int, int]

    def epoch(self, number: int) -> Epoch:
        """The plan of epoch `number`, counted from 0."""
        key, rows = hashed(self.seed, number), int(self.loader.sample_size)
        order = np.random.Generator(np.random.PCG64(key)).permutation(rows) if self.shuffled else np.arange(rows)
        return Epoch(self.loader, order.astype(np.int64), key, number, self.deal)


@dataclass(frozen=True)
class Ranked:
    """What there is to rank of a part: a store whose users are RecBole's rows, and RecBole's batches of them."""

    store: Store
    loader: Any

    @property
    def rows(self) -> Int64:
        """The rows, which are the users of the store."""
        return np.arange(self.store.num_users)

    def batches(self, place: int = 0, processes: int = 1) -> Iterator[Rows]:
        """RecBole's own batches, those of one process."""
        size, total = int(self.loader.step), self.store.num_users
        for number, start in enumerate(range(0, total, size)):
            if number % processes == place:
                rows = np.arange(start, min(start + size, total))
                shims.seed_rows(number)  # a transform draws from it, whatever is done with what it draws
                with shims.told():
                    found = self.loader.collate_fn(rows)[0]
                yield Rows(found, torch.from_numpy(rows), number, 0)


def ranked(config: Any, dataset: Any, loader: Any) -> Ranked | None:
    """The rows of RecBole's evaluation loader; None where the split leaves nothing to the part."""
    if not len(loader._dataset):
        return None
    items = int(dataset.item_num) - 1
    lists = _of_rows(dataset, loader._dataset) if shims.is_sequential(config) else _of_users(loader)
    before, after = (np.fromiter(map(len, some), np.int64) for some in lists)
    offsets = np.concatenate([[0], np.cumsum(before + after)]).astype(np.int64)
    events = np.concatenate([part for pair in zip(*lists, strict=True) for part in pair]).astype(np.int32)
    cuts = np.stack([offsets[:-1] + before] * 2, axis=1)
    card = {"counts": {"items": items, "users": len(before), "events": len(events)}}
    histories = Histories(offsets, events, np.zeros(len(events), np.int64))
    return Ranked(Store(Path(), card, histories, cuts, np.full(len(before), 4, np.uint8)), loader)


def _of_users(loader: Any) -> tuple[list[Int64], list[Int64]]:
    """General models: a row is a user; what is masked and what is asked for are RecBole's own sets."""
    users = loader.uid_list.tolist()
    return tuple([table[user].numpy() for user in users] for table in (loader.uid2history_item, loader.uid2positive_item))  # type: ignore[return-value]


def _of_rows(dataset: Any, part: Any) -> tuple[list[Int64], list[Int64]]:
    """Sequential models: a row is one event of a user, asked for after all the user's events before it."""
    targets = [np.array([item]) for item in part.inter_feat[part.iid_field].tolist()]
    if shims.ROW not in dataset.inter_feat:  # files that are split already hold no more than what they show
        shown = part.inter_feat[part.item_id_list_field].numpy()
        return [row[row > 0] for row in shown], targets
    whole = dataset.inter_feat
    order = np.argsort(whole[shims.ROW].numpy())
    users, items = (whole[field].numpy()[order] for field in (dataset.uid_field, dataset.iid_field))
    firsts = np.flatnonzero(np.diff(users, prepend=-1))
    # A row is an event that has another before it, so that a user's first event is in the list of the first row alone.
    opening = whole[dataset.item_id_list_field].numpy()[order[firsts], 0]
    events = np.insert(items, firsts, opening)
    place = np.searchsorted(firsts, np.arange(len(items)), side="right") - 1  # of each row's user
    begins, at = firsts[place] + place, np.arange(len(items)) + place + 1
    chosen = part.inter_feat[shims.ROW].numpy()
    return [events[lo:hi] for lo, hi in zip(begins[chosen], at[chosen], strict=True)], targets


def training_rows(config: Any, train: Any, deal: tuple[int, int]) -> TrainingRows:
    """The training part of RecBole's loaders."""
    if not int(train.sample_size):
        raise UserError("There is nothing to train on: the split leaves no row to the training part.")
    return TrainingRows(train, int(config["seed"]), bool(train.shuffle), deal)


def hashed(*parts: int) -> int:
    """A 63-bit number from a few others, the same on every machine."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> np.uint64(1))
