"""Which part of a history a training row shows, and which widths rows are padded to.

Letters: R rows (windows). A window shows the events begin .. end - 1 and predicts the events first .. end.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

Coverage = Literal["all", "newest", "drawn", "drawn_late"]
Seams = Literal["fixed", "long", "all"]
"""Which histories are cut elsewhere in every epoch: none, those longer than a window, or all.

Cut histories show the model that any event may be the last: `all` gives the position nearest to the end, by which every
recommendation is made, as many kinds of histories as one training row for every prefix would, at a fraction of its cost.
"""


@dataclass(frozen=True)
class WindowRows:
    """R windows over the training parts of users' histories, as positions in the store's arrays."""

    users: Int64  # [R]
    begin: Int64  # [R] first event shown
    end: Int64  # [R] one past the last event shown; the event at `end` is the last target
    first: Int64  # [R] first target; events between begin and first are context alone

    @property
    def lengths(self) -> Int64:
        """Events shown: [R]."""
        return self.end - self.begin


def lay(
    users: Int64,
    starts: Int64,
    ends: Int64,
    length: int,
    overlap: int,
    seams: Seams = "fixed",
    generator: np.random.Generator | None = None,
) -> WindowRows:
    """Lay windows of at most `length` events over each training part, so that every target is covered once.

    Windows are laid from the end of a history: each predicts `length - overlap` targets and shows, before the first of
    them, up to `overlap` events for context alone. Where the seams are random, the newest window predicts a random number of
    targets (after as much context as fits), so that the seams lie elsewhere in every epoch. [U] each -> R rows.
    """
    stride = length - overlap
    targets = np.maximum(ends - starts - 1, 0)
    newest = np.minimum(targets, stride)
    if generator is not None and seams != "fixed":
        moved = targets > stride if seams == "long" else targets > 0
        newest = np.where(moved, generator.integers(1, np.maximum(newest, 1) + 1), newest)
    windows = np.where(targets > 0, 1 + -(-(targets - newest) // stride), 0)
    row = np.repeat(np.arange(len(users)), windows)
    number = np.arange(len(row)) - np.repeat(np.cumsum(windows) - windows, windows)
    last_target = ends[row] - 1 - np.where(number > 0, newest[row] + (number - 1) * stride, 0)
    predicted = np.where(number == 0, newest[row], stride)
    first = np.maximum(last_target - predicted + 1, starts[row] + 1)
    begin = np.maximum(last_target - length, starts[row])
    return WindowRows(users[row], begin, last_target, np.maximum(first, begin + 1))


def newest(users: Int64, starts: Int64, ends: Int64, length: int) -> WindowRows:
    """Only the last window of each training part: older targets are never trained on. [U] each -> R rows."""
    kept = ends - starts >= 2
    users, starts, last = users[kept], starts[kept], ends[kept] - 1
    begin = np.maximum(last - length, starts)
    return WindowRows(users, begin, last, begin + 1)


def drawn(
    users: Int64, starts: Int64, ends: Int64, length: int, generator: np.random.Generator, late: bool = False
) -> WindowRows:
    """One target of each training part, any but the first event, and what comes before it. [U] each -> R rows.

    `late`: any of the second half, of n events from number (n - 1) // 2 on, counted from 0.
    """
    kept = ends - starts >= 2
    users, starts, ends = users[kept], starts[kept], ends[kept]
    first = np.maximum(starts + 1, starts + (ends - starts - 1) // 2) if late else starts + 1
    target = generator.integers(first, ends)
    return WindowRows(users, np.maximum(target - length, starts), target, target)


def filled(lengths: Int64, tokens: int) -> Iterator[slice]:
    """Batches of consecutive rows of ascending lengths, none of more tokens than these when padded, but of one row at least."""
    at = 0
    while at < len(lengths):
        # The width of a batch is that of its last row; it shrinks to the rows that this then allows.
        size = max(1, tokens // max(1, int(lengths[at])))
        size = max(1, tokens // max(1, int(lengths[min(at + size, len(lengths)) - 1])))
        yield slice(at, at + size)
        at += size


def widths(lengths: Int64, longest: int, shapes: int) -> Int64:
    """At most `shapes` padded widths, the largest being `longest`, that waste the fewest padded positions. [R] -> [S].

    Dynamic programming over the histogram: cost of one bucket (a, b] = b * rows in it.
    """
    histogram = np.bincount(lengths, minlength=longest + 1)[: longest + 1]
    below = np.cumsum(histogram)
    candidates = np.unique(np.append(np.flatnonzero(histogram), longest))
    best = candidates * below[candidates].astype(np.float64)
    choices: list[NDArray[np.intp]] = []
    for _ in range(min(shapes, len(candidates)) - 1):
        bucket = candidates[None, :] * (below[candidates][None, :] - below[candidates][:, None]).astype(np.float64)
        cost = np.where(np.tri(len(candidates), k=0, dtype=bool).T, best[:, None] + bucket, np.inf)
        choices.append(cost.argmin(0))
        best = cost.min(0)
    at = len(candidates) - 1
    chosen = {int(candidates[at])}
    for choice in reversed(choices):
        at = int(choice[at])
        chosen.add(int(candidates[at]))
    return np.asarray(sorted(chosen), dtype=np.int64)
