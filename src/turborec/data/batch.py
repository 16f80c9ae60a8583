"""The batches models eat: frozen sets of named tensors, each with an `.example()`.

Letters: B rows, L positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from turborec.data.schema import UNKNOWN_TIME


@dataclass(frozen=True)
class Interactions:
    """Who has which item in the training part: distinct pairs, by (user, item)."""

    users: Tensor  # int32 [E] rows of the store
    items: Tensor  # int32 [E]


@dataclass(frozen=True)
class ItemTokens:
    """What is told of the items, as tokens of a vocabulary: those of item i, one after the other, from offsets[i] on."""

    ids: Tensor  # int32 [T]
    types: Tensor  # uint8 [T]: 1 in the name of an attribute, 2 in what it says
    offsets: Tensor  # int64 [V + 2]: item 0, padding, has none
    vocabulary: int
    begin: int  # the token that stands for a whole text
    padding: int
    mask: int | None
    tokenizer: str = ""  # the tokenizer.json that cut them

    def hashes(self) -> list[bytes]:
        """SHA-256 of each item's tokens and their types, items 1..V."""
        ids, types, at = self.ids.numpy(), self.types.numpy(), self.offsets.tolist()
        return [sha256(ids[lo:hi].tobytes() + types[lo:hi].tobytes()).digest() for lo, hi in pairwise(at[1:])]


@dataclass(frozen=True)
class DataSpec:
    """Facts about the data nobody chose, as a model needs them to be built."""

    users: int
    items: int  # V: real items; tables have V + 1 rows because row 0 is padding
    max_length: int  # the longest history a batch shows
    popularity: Tensor | None = None  # int64 [V + 1]: training events of each item; None where nobody counted
    ticks: int = 1  # of the unit of time in a second
    told: bool = False  # whether batches say when what follows their last event is asked for
    graph: Interactions | None = None  # of models that train on pairs
    features: Mapping[str, Tensor] = field(default_factory=dict)  # float32 [V + 1, width] by name; NaN: the item has none
    texts: ItemTokens | None = None  # of models that read what is told of the items
    kept: Path | None = None  # where what takes long to find from the data may be kept

    def item_counts(self) -> Tensor:
        """Training events of each item, one each where nobody counted: int64 [V + 1]."""
        return torch.ones(self.items + 1, dtype=torch.int64) if self.popularity is None else self.popularity


def between(earlier: Tensor, later: Tensor, ticks: int) -> tuple[Tensor, Tensor]:
    """Seconds between times of `ticks` a second, and whether both are known: int64 [...] twice -> float32 [...], bool [...].

    0 where time goes back, as in a store whose order is by parts first, and where it is not known.
    """
    known = (earlier != UNKNOWN_TIME) & (later != UNKNOWN_TIME)
    return torch.where(known, later - earlier, 0).clamp(min=0).float() / ticks, known


class Rows:
    """Named tensors of as many rows each, which go to a device and are cut together."""

    asked: ClassVar[str]  # the tensor that is 0 where nothing is asked for
    targets_count: int

    def num_targets(self) -> int:
        """How many predictions the batch asks for."""
        return self.targets_count

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`; on an accelerator from pinned memory, so that nobody waits for the copy."""
        if self.tensors()["items"].device == device:
            return self
        there = self.pinned() if device.type == "cuda" else self
        return there._with(
            {name: part.to(device, non_blocking=True) for name, part in there.tensors().items()}, self.targets_count
        )

    def pinned(self) -> Self:
        """The same batch in memory that an accelerator reads by itself."""
        return self._with({name: part.pin_memory() for name, part in self.tensors().items()}, self.targets_count)

    def split(self, parts: int) -> list[Self]:
        """At most `parts` batches of consecutive rows whose sizes differ by one at most."""
        rows = len(self.tensors()["items"])
        parts = min(parts, max(1, rows))
        edges = [rows * i // parts for i in range(parts + 1)]
        return [self.rows(lo, hi) for lo, hi in pairwise(edges) if hi > lo]

    def rows(self, lo: int, hi: int) -> Self:
        """Rows lo..hi-1."""
        cut = {name: tensor[lo:hi] for name, tensor in self.tensors().items()}
        return self._with(cut, int((cut[self.asked] != 0).sum()))

    def nothing(self) -> Self:
        """A batch of one empty row, for a process that has no part left where the others have."""
        return self._with({name: tensor[:1] * 0 for name, tensor in self.tensors().items()}, 0)

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def _with(self, tensors: dict[str, Tensor], targets: int) -> Self:
        changed: Self = replace(cast("Any", self), **tensors, targets_count=targets)
        return changed


@dataclass(frozen=True)
class SequenceBatch(Rows):
    """Histories, oldest event first, padded with 0 on the right."""

    asked = "targets"

    items: Tensor  # int64 [B, L]
    times: Tensor  # int64 [B, L]; UNKNOWN_TIME where unknown or padded
    targets: Tensor  # int64 [B, L]: the item that follows; 0 where nothing is to be predicted
    lengths: Tensor  # int64 [B]: events shown
    users: Tensor  # int64 [B]: row in the store, -1 for a user it does not hold
    keys: Tensor  # int64 [B]: the random key of each row; whatever is random about a row follows from it
    key: int = 0  # the random key of the step, for what all its rows share (negatives)
    targets_count: int = 0  # how many targets are not 0; counted once, where the batch is made
    request: Tensor | None = None  # int64 [B]: when what follows the last event is asked for, where models are told

    def size(self) -> tuple[int, int]:
        """Events shown, and positions that could hold one."""
        return int(self.lengths.sum()), self.items.numel()

    def nothing(self) -> Self:
        """A batch of one empty row, of no user and no time."""
        empty = super().nothing()
        return replace(empty, times=empty.times + UNKNOWN_TIME, users=empty.users - 1)

    def last(self) -> Tensor:
        """The position of each row's last event (0 for an empty row): int64 [B]."""
        return (self.lengths - 1).clamp(min=0)

    def gaps(self, spec: DataSpec) -> tuple[Tensor, Tensor]:
        """Seconds from the event before each event, and whether they are known: float32 [B, L], bool [B, L].

        Where models are told when they are asked, they are those to the event after it, and to the request.
        """
        times, unknown = self.times, self.times.new_full((len(self.times), 1), UNKNOWN_TIME)
        if not spec.told:
            return between(torch.cat([unknown, times[:, :-1]], dim=1), times, spec.ticks)
        after = torch.cat([times[:, 1:], unknown], dim=1)
        request = unknown if self.request is None else self.request[:, None]
        return between(times, after.scatter(1, self.last()[:, None], request), spec.ticks)

    @classmethod
    def example(cls, spec: DataSpec, size: int, generator: torch.Generator) -> Self:
        """A random batch of `size` histories of 1..max_length events, with a target after each event."""
        length = spec.max_length
        lengths = torch.randint(1, length + 1, (size,), generator=generator)
        lengths[0] = length
        shown = torch.arange(length) < lengths[:, None]
        events = torch.randint(1, spec.items + 1, (size, length + 1), generator=generator)
        gaps = torch.randint(0, 10**6, (size, length), generator=generator)
        return cls(
            items=events[:, :-1] * shown,
            times=torch.where(shown, 10**9 + gaps.cumsum(1), UNKNOWN_TIME),
            targets=events[:, 1:] * shown,
            lengths=lengths,
            users=torch.randint(0, spec.users, (size,), generator=generator),
            keys=torch.randint(-(2**62), 2**62, (size,), generator=generator),
            key=int(torch.randint(0, 2**31, (), generator=generator)),
            targets_count=int(lengths.sum()),
        )


@dataclass(frozen=True, kw_only=True)
class AskedBatch(SequenceBatch):
    """Histories, and what a model makes of them before it computes: no step has to wait until a device says how much it is."""

    where: Tensor  # int64 [N]: the states that are asked for, among those of the batch or of `at`, flattened
    wanted: Tensor  # int64 [N]: the item to be named there; 0 where a place fills the row alone
    count: int  # how many are not
    at: Tensor | None = None  # int64 [B, M]: the places of their rows whose states are computed at all; None: all of them
    hidden: Tensor | None = None  # bool [B, L + 1]: of the events and the one that follows, those a model must not see

    @classmethod
    def of(cls, batch: SequenceBatch, asked: Tensor, wanted: Tensor, size: int = 0) -> Self:
        """The batch, asked for places that `asked` names among its states, flattened, and at least `size` of them in all."""
        more = max(0, size - len(asked))
        where, wanted_there = (F.pad(part, (0, more)) for part in (asked, wanted))
        given: dict[str, Any] = vars(batch)  # what follows is of all its rows together
        return cls(**given, where=where, wanted=wanted_there, count=int((wanted != 0).sum()))


@dataclass(frozen=True, kw_only=True)
class TextBatch(SequenceBatch):
    """Histories, and as texts what comes before each of their targets: N texts of T tokens together."""

    tokens: Tensor  # int64 [T], one text after the other
    types: Tensor  # int64 [T]
    item_positions: Tensor  # int64 [T]: 0 of a text's first token, 1 of the newest item's, 2 of the one before it
    token_items: Tensor | None  # int64 [T]: whose token it is, where it matters
    token_lengths: Tensor  # int64 [N]: tokens of each text
    longest: int  # of these
    text_keys: Tensor  # int64 [N]: the random key of each text
    wanted: Tensor  # int64 [N]: the item that follows


@dataclass(frozen=True)
class PairBatch(Rows):
    """Users, an item that each has, and one that the user has not."""

    asked = "items"

    users: Tensor  # int64 [B] rows of the store
    items: Tensor  # int64 [B]; 0 where nothing is asked for
    negatives: Tensor  # int64 [B]; 0 where nothing is asked for
    keys: Tensor  # int64 [B]: the random key of each row
    key: int = 0  # the random key of the step, for what all its rows share
    targets_count: int = 0  # how many items are not 0; counted once, where the batch is made

    def size(self) -> tuple[int, int]:
        """Pairs, and rows that could hold one."""
        return self.targets_count, len(self.items)

    @classmethod
    def example(cls, spec: DataSpec, size: int, generator: torch.Generator) -> Self:
        """A random batch of `size` pairs, of the graph where there is one."""
        if spec.graph is None or not len(spec.graph.users):
            users = torch.randint(0, spec.users, (size,), generator=generator)
            items = torch.randint(1, spec.items + 1, (size,), generator=generator)
        else:
            chosen = torch.randint(0, len(spec.graph.users), (size,), generator=generator)
            users, items = spec.graph.users[chosen].long(), spec.graph.items[chosen].long()
        away = torch.randint(1, max(2, spec.items), (size,), generator=generator)
        return cls(
            users=users,
            items=items,
            negatives=(items - 1 + away) % spec.items + 1,
            keys=torch.randint(-(2**62), 2**62, (size,), generator=generator),
            key=int(torch.randint(0, 2**31, (), generator=generator)),
            targets_count=size,
        )
