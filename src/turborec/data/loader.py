"""A store as deterministic batches: each one a pure function of (seed, epoch, step), built without a Python loop over rows.

Letters: R rows (windows), B rows of a batch, L its width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from turborec.data.batch import SequenceBatch
from turborec.data.schema import UNKNOWN_TIME
from turborec.data.store import Part, Store
from turborec.data.windows import Coverage, Int64, Seams, WindowRows, drawn, filled, lay, newest, widths
from turborec.recipe import Config


class Batches(Config):
    """How histories become batches."""

    max_length: int = Field(50, ge=1, description="events a row shows at most, in training and in evaluation")
    tokens: int = Field(8192, ge=1, description="of a batch: padded positions it is filled to; pairs, of models of pairs")
    tokens_of: Literal["run", "process"] = Field("run", description="whose tokens are: of all processes together, or of each")
    coverage: Coverage = Field(
        "all",
        description="all: every target once an epoch; newest: the last window; drawn: one target a history; drawn_late: one of "
        "its second half",
    )
    overlap: int = Field(0, ge=0, description="events a window shows for context before its first target")
    seams: Seams = Field("long", description="histories whose windows are laid anew in every epoch: fixed (none), long, all")
    shapes: int = Field(12, ge=1, description="how many padded widths there are at most")
    request_time: Literal["none", "target"] = Field(
        "none", description="target: models are told when what they predict happens, in training and in evaluation"
    )

    @model_validator(mode="after")
    def _overlap_leaves_targets(self) -> "Batches":
        if self.overlap >= self.max_length:
            raise ValueError(f"overlap {self.overlap} must be smaller than max_length {self.max_length}")
        return self

    @property
    def told(self) -> bool:
        """Whether models are told when they are asked."""
        return self.request_time == "target"

    def total(self, processes: int) -> int:
        """Tokens of a global batch."""
        return self.tokens * (processes if self.tokens_of == "process" else 1)


Deal = tuple[int, int]
"""A process's place among how many: (0, 1) is a process by itself."""

ALONE: Deal = (0, 1)

Make = Callable[[WindowRows, int, Int64, int], Any]
"""(rows, padded width, keys of the rows, key of the step) -> batch."""


@dataclass(frozen=True)
class Epoch:
    """One pass over the training targets, planned: which rows form which batch."""

    make: Make  # what makes a batch of rows
    rows: WindowRows
    order: list[NDArray[np.int64]]  # row numbers of each batch
    width: list[int]  # padded width of each batch
    keys: Int64  # [R] random key of each row
    key: int  # random key of the epoch
    number: int  # from 0
    deal: Deal = ALONE

    def __len__(self) -> int:
        """Batches, which is optimizer steps."""
        return len(self.order)

    @property
    def fill(self) -> float:
        """Share of the batches' positions that hold an event."""
        shown = int(self.rows.lengths.sum())
        return shown / max(1, sum(len(o) * w for o, w in zip(self.order, self.width, strict=True)))

    @property
    def targets(self) -> int:
        """Predictions asked for in the whole epoch."""
        return int((self.rows.end - self.rows.first + 1).sum())

    def batch(self, step: int) -> Any:
        """The share of this process of the batch of step 0..len - 1; an empty row where there are too few for all."""
        share = self._share(self.order[step])
        if len(share):
            return self.batch_of(share, self.width[step], step)
        idle = self.order[step][:1]
        rows = self._rows(idle)
        rows = replace(rows, begin=rows.end, first=rows.end + 1)
        return self.make(rows, self.width[step], self.keys[idle], hashed(self.key, step))

    def _share(self, chosen: Int64) -> Int64:
        """The rows of this process: as many as each of the others has, or one more, and about as many targets.

        Those with the most targets are dealt first, forth and back, for all wait for the process that has the most to do.
        """
        place, processes = self.deal
        turn = np.arange(len(chosen)) % (2 * processes)
        dealt = np.argsort(self.rows.first[chosen] - self.rows.end[chosen], kind="stable")
        share: Int64 = chosen[np.sort(dealt[np.minimum(turn, 2 * processes - 1 - turn) == place])]
        return share

    def batch_of(self, chosen: Int64, width: int, step: int) -> Any:
        """These rows, by their numbers, as the batch of a step: none of them is longer than `width`."""
        return self.make(self._rows(chosen), width, self.keys[chosen], hashed(self.key, step))

    def _rows(self, chosen: Int64) -> WindowRows:
        return WindowRows(*(getattr(self.rows, name)[chosen] for name in ("users", "begin", "end", "first")))


class Some:
    """Some steps of an epoch, for a trial."""

    def __init__(self, epoch: Epoch, steps: Sequence[int]) -> None:
        self._epoch, self._steps = epoch, steps
        self.key, self.number = epoch.key, epoch.number

    def __len__(self) -> int:
        return len(self._steps)

    def batch(self, step: int) -> Any:
        """The batch of step 0..len - 1."""
        return self._epoch.batch(self._steps[step])


class TrainingBatches:
    """The training part of a store, planned epoch by epoch."""

    def __init__(self, store: Store, config: Batches, seed: int, deal: Deal = ALONE) -> None:
        """Every process plans the same batches; `deal` says which share of each this one takes."""
        self.store, self.config, self.seed, self.deal = store, config, seed, deal
        users = store.users_of("train")
        self._users, (self._starts, self._ends) = users, store.span("train", users)
        # Of an epoch like any other: where seams move, histories are shorter than they are without.
        lengths = self._lay(np.random.Generator(np.random.PCG64(0))).lengths
        self.widths = widths(lengths, config.max_length, config.shapes) if len(lengths) else np.ones(1, np.int64)

    def epoch(self, number: int) -> Epoch:
        """The plan of epoch `number`, counted from 0."""
        key = hashed(self.seed, number)
        generator = np.random.Generator(np.random.PCG64(key % 2**63))
        rows = self._lay(generator)
        bucket = np.searchsorted(self.widths, rows.lengths)
        shuffled = generator.permutation(len(rows.users))
        shuffled = shuffled[np.argsort(bucket[shuffled], kind="stable")]
        order, width = [], []
        for place, members in enumerate(np.split(shuffled, np.cumsum(np.bincount(bucket, minlength=1))[:-1])):
            size = max(1, self.config.total(self.deal[1]) // int(self.widths[place])) if len(members) else 1
            for start in range(0, len(members), size):
                order.append(members[start : start + size])
                width.append(int(self.widths[place]))
        turn = generator.permutation(len(order))
        keys = row_keys(key, rows)
        turned = [order[t] for t in turn], [width[t] for t in turn]
        make = partial(_build, self.store, told=self.config.told)
        return Epoch(make, rows, *turned, keys, key, number, self.deal)

    def _lay(self, generator: np.random.Generator) -> WindowRows:
        config = self.config
        if config.coverage == "newest":
            return newest(self._users, self._starts, self._ends, config.max_length)
        if config.coverage in ("drawn", "drawn_late"):
            late = config.coverage == "drawn_late"
            return drawn(self._users, self._starts, self._ends, config.max_length, generator, late)
        return lay(self._users, self._starts, self._ends, config.max_length, config.overlap, config.seams, generator)


def evaluation_batches(store: Store, part: Part, batches: Batches, users: Int64 | None = None) -> Iterator[SequenceBatch]:
    """The last `max_length` events before `part` of each user that takes part in it (or of `users`), like lengths together.

    Fixed by store and recipe: no key, no targets, the same batches every time.
    """
    users = store.users_of(part) if users is None else users
    end = store.span(part, users)[0]
    begin = np.maximum(end - batches.max_length, store.histories.offsets[users])
    order = np.argsort(end - begin, kind="stable")
    for some in filled((end - begin)[order], batches.tokens):
        chosen = order[some]
        rows = WindowRows(users[chosen], begin[chosen], end[chosen], end[chosen] + 1)
        yield _build(store, rows, max(1, int(rows.lengths.max())), np.zeros(len(chosen), np.int64), 0, told=batches.told)


def history_batch(items: list[Int64], times: list[Int64], max_length: int) -> SequenceBatch:
    """The last events of histories that no store holds: dense item ids, oldest first. -> [B, L]."""
    lengths = np.asarray([min(len(history), max_length) for history in items], dtype=np.int64)
    width = max(1, int(lengths.max(initial=0)))
    shown = np.zeros((len(items), width), np.int64)
    when = np.full((len(items), width), UNKNOWN_TIME, np.int64)
    for row, (history, clock) in enumerate(zip(items, times, strict=True)):
        if lengths[row]:
            shown[row, : lengths[row]] = history[-max_length:]
            when[row, : lengths[row]] = clock[-max_length:]
    nobody = np.full(len(items), -1, np.int64)
    return _tensors(shown, when, np.zeros_like(shown), lengths, nobody, np.zeros_like(nobody), 0)


def _build(store: Store, rows: WindowRows, width: int, keys: Int64, key: int, *, told: bool) -> SequenceBatch:
    """Gather rows from the memory map: [B] positions -> [B, width] tensors."""
    lengths, histories = rows.lengths, store.histories
    position = np.arange(width + 1)
    # Beyond a row's end lie other events, or the end of the file; what is read there is taken out again.
    index = rows.begin[:, None] + position
    events = histories.items.take(index, mode="clip")
    shown = position[:-1] < lengths[:, None]
    times = np.where(shown, histories.times.take(index[:, :-1], mode="clip"), UNKNOWN_TIME)
    wanted = shown & (position[1:] >= (rows.first - rows.begin)[:, None])
    items, targets = (
        np.multiply(part, mask, dtype=np.int64) for part, mask in ((events[:, :-1], shown), (events[:, 1:], wanted))
    )
    request = histories.times.take(rows.end, mode="clip") if told else None
    return _tensors(items, times, targets, lengths, rows.users, keys, key, request)


def _tensors(
    items: Int64,
    times: Int64,
    targets: Int64,
    lengths: Int64,
    users: Int64,
    keys: Int64,
    key: int,
    request: Int64 | None = None,
) -> SequenceBatch:
    as_tensor = torch.from_numpy
    return SequenceBatch(
        items=as_tensor(items),
        times=as_tensor(times),
        targets=as_tensor(targets),
        lengths=as_tensor(lengths),
        users=as_tensor(users),
        keys=as_tensor(keys),
        key=key,
        targets_count=int(np.count_nonzero(targets)),
        request=None if request is None else as_tensor(request),
    )


def row_keys(key: int, rows: WindowRows) -> Int64:
    """A key for each row that depends on the epoch, the user and the window alone, never on its batch: [R]."""
    mixed = np.random.Generator(np.random.PCG64(key % 2**63)).integers(-(2**63), 2**63 - 1, size=2, dtype=np.int64)
    with np.errstate(over="ignore"):
        keys: Int64 = (rows.users + 1) * (mixed[0] | 1) + rows.end * (mixed[1] | 1)
    return keys


def hashed(*parts: int) -> int:
    """A 63-bit number from a few others, the same on every machine."""
    return int(np.random.SeedSequence(list(parts)).generate_state(1, np.uint64)[0] >> np.uint64(1))
