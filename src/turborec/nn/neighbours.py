"""Graphs among items and among users: who is alike by features, who has chosen the same. Built sparsely, kept by content.

Letters: V items, F width of a table, k neighbours, E entries, U users.
"""

import contextlib
import hashlib
import logging
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from turborec.nn.graph import Sparse
from turborec.nn.modality import Modality

logger = logging.getLogger("turborec")

CELLS = 2**24
"""Similarities, or counts, that are held at a time."""

VERSION = 2
"""Raised when the same tables would give another graph."""

Entries = tuple[Tensor, Tensor, Tensor]
"""Rows, columns and weights of a graph: int64 [E], int64 [E], float32 [E]."""


def nearest(table: Modality, k: int) -> tuple[Tensor, Tensor]:
    """The k items most alike to each item by the cosine of their features, itself among them: int64 [E] twice.

    An item without features, or with nothing but zeros, has no neighbours and is nobody's. Of items that are exactly alike
    any may be taken.
    """
    largest = table.values.abs().amax(1)
    known = (table.there & (largest > 0)).nonzero().squeeze(1)
    # Squares of what is at most 1 neither overflow nor vanish, whatever the unit of a table.
    unit = torch.nn.functional.normalize(table.values.index_select(0, known) / largest[known, None], dim=1)
    k = min(k, len(known))
    found = [
        (unit[start : start + step] @ unit.T).topk(k).indices
        for step in [max(1, CELLS // max(1, len(known)))]
        for start in range(0, len(known), step)
    ]
    columns = torch.cat(found) if found else known.new_zeros(0, k)
    return known.repeat_interleave(k), known[columns.flatten()]


def item_graph(tables: Sequence[Modality], weights: Tensor, k: int, folder: Path | None) -> Sparse:
    """The frozen graph of items of FREEDOM and DRAGON: a mixture of the nearest neighbours by each modality, V + 1 square.

    Each of an item's k neighbours counts 1 / k, times the weight of the modality [M]. An item that lacks some modalities
    has the graph of the others alone. What was found is kept in `folder`, under a name that follows from all of this.
    """
    size = len(tables[0].there)

    def make() -> Entries:
        counting = [(table, float(weight)) for table, weight in zip(tables, weights, strict=True) if weight]
        parts = [nearest(table, k) for table, _ in counting]
        rows, columns = (torch.cat(part) for part in zip(*parts, strict=True))
        each = torch.cat([torch.full((len(part[0]),), weight) for part, (_, weight) in zip(parts, counting, strict=True)])
        codes, place = torch.unique(rows * size + columns, return_inverse=True)
        values = torch.zeros(len(codes), dtype=torch.float64).index_add_(0, place, each.double())
        total = torch.zeros(size, dtype=torch.float64).index_add_(0, codes // size, values)
        return codes // size, codes % size, (values / total[codes // size]).float()

    parts = [table.values.numpy() for table in tables] + [table.there.numpy() for table in tables]
    rows, columns, values = _kept(folder, ["items by cosine", str(k), str(weights.tolist())], parts, make)
    return Sparse(rows, columns, values, (size, size))


def user_graph(users: Tensor, items: Tensor, sizes: tuple[int, int], k: int, folder: Path | None) -> Sparse:
    """DRAGON's graph of users: the k with whom each has most items in common, by the softmax of how many, U square.

    `users`, `items` [E]: distinct pairs by (user, item). Of users with as many in common those of the lowest number are
    taken. Published code fills up who has less than k with repetitions drawn at random; here there are as many as there are.
    """

    def make() -> Entries:
        rows, columns, counts = common(users, items, sizes, k)
        shifted = counts.double() - torch.zeros(sizes[0]).double().scatter_reduce(0, rows, counts.double(), "amax")[rows]
        weights = shifted.exp()
        total = torch.zeros(sizes[0], dtype=torch.float64).index_add_(0, rows, weights)
        return rows, columns, (weights / total[rows]).float()

    rows, columns, weights = _kept(folder, ["users in common", str(k), str(sizes)], [users.numpy(), items.numpy()], make)
    return Sparse(rows, columns, weights, (sizes[0], sizes[0]))


def common(users: Tensor, items: Tensor, sizes: tuple[int, int], k: int) -> Entries:
    """With whom each user has most items in common, k at most, and how many: int64 [E] each, by user.

    Of every user's items the owners are counted, some users at a time, so the cost is that of all pairs of owners.
    """
    people, owners = sizes[0], users.numpy().astype(np.int64)
    order = np.argsort(items.numpy(), kind="stable")
    starts = np.searchsorted(items.numpy()[order], np.arange(sizes[1] + 2))
    held, offsets = owners[order], np.searchsorted(owners, np.arange(people + 1))
    degrees = np.diff(starts)[items.numpy()]
    paired = np.concatenate([[0], np.cumsum(degrees)])[offsets]  # pairs of owners up to each user
    found: list[tuple[NDArray[Any], ...]] = []
    first = 0
    while first < people:
        enough = int(np.searchsorted(paired, paired[first] + CELLS, side="right")) - 1
        last = max(first + 1, min(first + max(1, CELLS // people), enough, people))
        mine = slice(offsets[first], offsets[last])
        lengths, own = degrees[mine], items.numpy()[mine]
        ends = np.cumsum(lengths)
        place = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts[own] - ends + lengths, lengths)
        cells = np.repeat(owners[mine] - first, lengths) * people + held[place]
        counts = np.bincount(cells, minlength=(last - first) * people).reshape(last - first, people)
        counts[np.arange(last - first), np.arange(first, last)] = 0
        # Ties go to the lower number: counts are told apart by it below one.
        ranked = torch.from_numpy(counts * people + np.arange(people - 1, -1, -1)).topk(min(k, people), dim=1).indices.numpy()
        best = np.take_along_axis(counts, ranked, axis=1)
        row, column = np.nonzero(best)
        found.append((row + first, ranked[row, column], best[row, column]))
        first = last
    joined = [torch.from_numpy(np.concatenate(part)) for part in zip(*found, strict=True)]
    return joined[0], joined[1], joined[2]


def _kept(folder: Path | None, words: list[str], arrays: list[NDArray[Any]], make: Callable[[], Entries]) -> Entries:
    """What `make` gives, from a file that is named by all that it follows from, where there is one already."""
    if folder is None:
        return make()
    told = hashlib.sha256("\n".join([str(VERSION), *words]).encode())
    for array in arrays:
        told.update(str((array.shape, array.dtype)).encode() + np.ascontiguousarray(array).data)
    path = folder / f"{told.hexdigest()[:24]}.npz"
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            rows, columns, weights = (torch.from_numpy(file[name]) for name in ("rows", "columns", "weights"))
        return rows, columns, weights
    except FileNotFoundError:
        pass
    except (OSError, ValueError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        logger.warning(f"{path} cannot be read ({error}) and is made anew.")
    found = make()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.savez(file, rows=found[0].numpy(), columns=found[1].numpy(), weights=found[2].numpy())
        temporary.replace(path)
    except OSError as error:
        logger.warning(f"{path} cannot be written ({error.strerror}), so that this graph will be found again the next time.")
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return found
