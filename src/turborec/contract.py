"""What the engine, the evaluator and a model agree on: the loss they exchange and the tiles they score.

Letters: B rows, D width, V items. Item ids run from 1 to V; 0 is padding and never scored.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Parts(Protocol):
    """How a process works on a table of which each process holds some rows.

    Letters, beside those of the module: N rows of this process, M of all.
    """

    first: int  # the row of the table that is the first here
    total: int  # rows of the table
    most: int  # items that one process holds

    def rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """The rows of these ids, whoever holds them: int64 [...] -> [..., D]."""
        ...

    def together(self, *own: Tensor) -> tuple[Tensor, ...]:
        """What all processes have of some tensors, theirs one after another: [N, ...] each -> [M, ...] each."""
        ...

    def own(self, total: Tensor) -> Tensor:
        """The rows of this process, of a tensor like those that were last brought together: [M, ...] -> [N, ...]."""
        ...

    def returned(self, parts: Tensor) -> Tensor:
        """The rows of this process, each the sum of what the processes have of it: [M, D] -> [N, D]."""
        ...

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum over the processes."""
        ...

    def greatest(self, tensor: Tensor) -> Tensor:
        """The largest among the processes, element by element."""
        ...

    def held(self, ids: Tensor) -> Any:
        """An index of those of the ids [N] whose rows are here."""
        ...


class Whole:
    """A table of which a process holds every row: `Parts` without others."""

    first = 0

    def __init__(self, table: Tensor) -> None:
        self.total = len(table)
        self.most = self.total - 1

    def rows(self, table: Tensor, ids: Tensor) -> Tensor:
        """The rows of these ids: int64 [...] -> [..., D]."""
        return F.embedding(ids, table, sparse=getattr(table, "_read_by_rows", False))

    def together(self, *own: Tensor) -> tuple[Tensor, ...]:
        """The tensors as they are."""
        return own

    def held(self, ids: Tensor) -> Any:
        """All of them."""
        return slice(None)

    def own(self, total: Tensor) -> Tensor:
        """The tensor as it is."""
        return total

    returned = summed = greatest = own


def parts_of(table: Tensor) -> Parts:
    """How this process works on a table of which the others may hold other rows."""
    found: Parts | None = getattr(table, "_parts", None)
    return found or Whole(table)


def rows_of(table: Tensor, ids: Tensor, shared: bool = False) -> Tensor:
    """The rows of a table: [V + 1, D], int64 [...] -> [..., D]; `shared` ids are the same in every process of a run."""
    note_reads(table, ids, shared)
    return parts_of(table).rows(table, ids)


def read_by_rows(table: nn.Parameter) -> None:
    """From now on the gradient of `rows_of` this table is sparse: an optimizer that updates only such rows asks for it."""
    table._read_by_rows = True  # type: ignore[attr-defined]


def read_densely(table: Tensor) -> None:
    """From now on the gradient of this table is dense again, and nobody counts its reads."""
    for mark in ("_read_by_rows", "_reads"):
        if hasattr(table, mark):
            delattr(table, mark)


def read_whole(table: nn.Embedding) -> nn.Embedding:
    """Mark a table that every step reads whole, padding included, such as that of positions: no optimizer goes by its rows."""
    table._read_whole = True  # type: ignore[assignment]
    return table


def count_reads(table: nn.Parameter) -> None:
    """From now on the ids that training reads of this table are kept, until `reads_of` takes them."""
    table._reads = {False: [], True: []}  # type: ignore[attr-defined]


def note_reads(table: Tensor, ids: Tensor, shared: bool = False) -> None:
    """Keep the ids, if that was asked for; rankings, which have no gradient, read nothing in this sense."""
    reads = getattr(table, "_reads", None)
    if reads is not None and torch.is_grad_enabled():
        reads[shared].append(ids.detach().flatten())


def reads_of(table: Tensor, shared: bool) -> Tensor:
    """How often each row was read since the last time this was asked, by shared ids or by others: int64 [V + 1]."""
    reads: list[Tensor] = table._reads[shared]  # type: ignore[attr-defined]
    nothing = torch.zeros(len(table), dtype=torch.int64, device=table.device)
    counts = torch.bincount(torch.cat(reads), minlength=len(table)) if reads else nothing
    reads.clear()
    return counts


def forget_reads(model: nn.Module) -> None:
    """Take back what was read in a step that is done again."""
    for parameter in model.parameters():
        for ids in getattr(parameter, "_reads", {}).values():
            ids.clear()


class Batch(Protocol):
    """A frozen set of named tensors. Never edited; everything random in a step is keyed by what it carries."""

    def num_targets(self) -> int:
        """How many predictions the batch asks for."""
        ...

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`."""
        ...

    def split(self, parts: int) -> list[Self]:
        """At most `parts` batches of about equal work whose rows together are this batch."""
        ...

    def nothing(self) -> Self:
        """A batch that asks for nothing, for a process that has no part left where the others have."""
        ...


@dataclass(frozen=True)
class Term:
    """One summand of a loss. The loop divides `sum` by the global `count` of the step, once, and applies `weight`."""

    sum: Tensor
    count: int
    weight: float = 1.0


@dataclass(frozen=True)
class Loss:
    """The named terms of one batch. A term that does not depend on the rows enters with `sum = value * count`."""

    terms: Mapping[str, Term]


class Scorer(Protocol):
    """Scores users against a tile of the catalogue; computed when asked for, so nothing on a model is stale."""

    def users(self, batch: Any) -> Any:
        """The state of the batch's B users from which tiles are scored."""
        ...

    def score(self, state: Any, lo: int, hi: int) -> Tensor:
        """Scores of items lo..hi-1 (1 <= lo < hi <= V + 1), float32 or float64: [B, hi - lo]."""
        ...


@dataclass(frozen=True)
class Cells:
    """Numbers that are added to single logits, no (row, item) twice: P of them, by ascending row."""

    rows: Tensor  # int64 [P]
    items: Tensor  # int64 [P]
    values: Tensor  # [P]


class DotProduct:
    """The usual scorer: a user's vector times an item's vector, plus the item's bias, in float32."""

    def __init__(
        self,
        encode: Callable[[Any], Tensor],
        items: Tensor,
        bias: Tensor | None = None,
        cells: Callable[[Any], Cells | None] = lambda batch: None,
    ) -> None:
        """`encode(batch)` gives [B, D]; `items` is [V + 1, D] with the unused padding row 0; `bias` is [V + 1].

        `cells(batch)` gives what is added to the scores of some users and items, if anything is.
        """
        self.encode, self.cells = encode, cells
        self.items = items.float()
        self.bias = None if bias is None else bias.float()

    def users(self, batch: Any) -> "Vectors":
        """The users' vectors, and what is theirs alone."""
        return Vectors.of(self.encode(batch), self.cells(batch))

    def score(self, state: "Vectors", lo: int, hi: int) -> Tensor:
        """Scores of items lo..hi-1: [B, hi - lo]."""
        users = state.users
        # Scores decide ranks, so no reduced precision may slip in from the caller's autocast.
        with torch.autocast(users.device.type, enabled=False):
            tile = self.items[lo:hi].to(users.device)  # a table that is too large for the device stays on the host
            scores = users @ tile.T if self.bias is None else torch.addmm(self.bias[lo:hi], users, tile.T)
            return scores if state.cells is None else _add(state.cells, scores, lo)


@dataclass(frozen=True)
class Vectors:
    """What `DotProduct` scores tiles from."""

    users: Tensor  # float32 [B, D]
    cells: Cells | None = None  # by ascending item, unlike others

    @classmethod
    def of(cls, users: Tensor, cells: Cells | None) -> Self:
        """Vectors of any type, and cells by row."""
        if cells is None:
            return cls(users.float())
        order = cells.items.argsort()
        return cls(users.float(), Cells(cells.rows[order], cells.items[order], cells.values[order].float()))


def _add(cells: Cells, scores: Tensor, lo: int) -> Tensor:
    """Add those of the cells that fall into a tile [B, W] of items from `lo` on, in place."""
    width = scores.shape[1]
    begin, end = torch.searchsorted(cells.items, torch.tensor([lo, lo + width], device=scores.device)).tolist()
    places = cells.rows[begin:end] * width + cells.items[begin:end] - lo
    scores.view(-1).index_add_(0, places, cells.values[begin:end])
    return scores


class Model(nn.Module, ABC):
    """A recommender: `forward` gives the loss of a batch, `scorer` what ranks items. It knows no training."""

    made_anew: ClassVar[frozenset[str]] = frozenset()
    """Buffers that a training makes for itself, and never takes from the weights that it begins with."""

    @property
    def divisible(self) -> bool:
        """Whether a batch that is computed in parts has the same gradient."""
        return True

    @property
    def replays(self) -> bool:
        """Whether `forward`, given what `asked` makes, is the same operations for all batches of the same shapes."""
        return False

    @abstractmethod
    def forward(self, batch: Any) -> Loss:
        """The loss of a batch as sums: a pure function of the parameters and the batch, dropout included."""

    @abstractmethod
    def scorer(self) -> Scorer:
        """What ranks items with the present parameters."""

    # Not every model has work that belongs to a training or an epoch, so doing nothing is the right default for the hooks.
    def begin(self) -> None:
        """What belongs before the first step of a training, and is not done again when it goes on: take given weights."""

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        """Work that belongs to an epoch: re-encode the item table, prune edges, draw neighbours."""

    def asked(self, batch: Any, again: bool = False) -> Any:
        """The batch with what follows from it and the model's settings alone, worked out on the processor that makes batches.

        `forward` takes either. `again` rounds sizes up, so that the shapes of a batch come again in others.
        """
        return batch

    def counts(self, batch: Batch) -> dict[str, int]:
        """The count of each term, known before `forward`; a term that is not named has `batch.num_targets()`.

        The loop adds these over accumulated batches and processes to divide each term by its global count.
        """
        return {}


class Counted(Model):
    """A model that is counted in one pass over the training histories instead of being trained by gradients."""

    @abstractmethod
    def count(self, histories: Any) -> None:
        """Fill the buffers from `histories` (offsets [U + 1], items [E]): the training part alone."""
