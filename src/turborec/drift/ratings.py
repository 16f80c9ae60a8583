"""Ratings in bins: those that the reference has, each a bin, and what lies between them.

Letters: L levels, E events.

With levels 1 and 2 the bins are: below 1, 1, between them, 2, above 2. So half stars that come into use, and a scale that ends
at 10 and no longer at 5, are bins of their own, which the reference has nothing in.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from turborec.drift import counts
from turborec.drift.periods import Periods

Levels = NDArray[np.float32]

MOST = 31
"""Levels at most, so that there are 63 bins at most; of more ratings than that, quantiles are the levels."""


def levels(log: "counts.Log", periods: Periods, reference: Sequence[int]) -> Levels:
    """The ratings of the events in the periods of the reference, ascending, or their quantiles: [L]; none without ratings."""
    assert log.values is not None
    known: Levels = np.zeros(0, np.float32)
    number: NDArray[np.float64] = np.zeros(0)
    for begin in range(0, len(log.times), counts.BLOCK):
        some = np.asarray(log.values[begin : begin + counts.BLOCK])
        inside = np.isin(periods.of(np.asarray(log.times[begin : begin + counts.BLOCK])), reference)
        found, often = np.unique(some[inside & ~np.isnan(some)], return_counts=True)
        known, place = np.unique(np.concatenate([known, found]), return_inverse=True)
        number = np.bincount(place, np.concatenate([number, often]), len(known)).astype(np.float64)
    if len(known) <= MOST:
        return known
    wanted = number.sum() * np.arange(1, MOST + 1) / (MOST + 1)
    return np.unique(known[np.searchsorted(np.cumsum(number), wanted)])


def names(of: Levels) -> list[str]:
    """What the bins are called: [2 L + 1] of [L]."""
    if not len(of):
        return ["any"]
    shown = [f"{level:g}" for level in of.tolist()]
    between = [f"between {one} and {other}" for one, other in pairwise(shown)]
    inner = [name for pair in zip(shown, [*between, f"above {shown[-1]}"], strict=True) for name in pair]
    return [f"below {shown[0]}", *inner]
