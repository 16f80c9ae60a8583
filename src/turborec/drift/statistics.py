"""How far one distribution of counts is from another, and which of them is looked at for what.

Letters: K bins, ... any further shape. Counts need not add up to one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from turborec.drift.counts import DECILES, GAP_STEP

Float = NDArray[np.float64]
Distance = Callable[[Any, Any], Float]

Cause = Literal["items", "users", "preference", "activity"]
"""What a statistic that has moved speaks of."""


def shares(counts: Any) -> Float:
    """[..., K] -> [..., K] that add up to one; all zero where there are no counts."""
    counts = np.asarray(counts, dtype=np.float64)
    total = counts.sum(-1, keepdims=True)
    found: Float = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    return found


def jensen_shannon(reference: Any, current: Any) -> Float:
    """The Jensen-Shannon divergence in bits, from 0 to 1 (Lin 1991, doi 10.1109/18.61115): [..., K] twice -> [...].

    >>> float(jensen_shannon([1, 1, 0], [1, 1, 0])), float(jensen_shannon([1, 0], [0, 5]))
    (0.0, 1.0)
    """
    p, q = shares(reference), shares(current)
    middle = (p + q) / 2
    found: Float = np.maximum((_entropy(middle) - (_entropy(p) + _entropy(q)) / 2), 0.0)
    return found


def _entropy(p: Float) -> Float:
    """In bits."""
    logs = np.log2(p, out=np.zeros_like(p), where=p > 0)
    found: Float = -(p * logs).sum(-1)
    return found


def stability(reference: Any, current: Any) -> Float:
    """The population stability index: sum of (q - p) log(q / p), half an event added to each bin: [..., K] twice -> [...].

    Below 0.1 it is commonly called stable, from 0.25 on shifted (Siddiqi 2006, Credit Risk Scorecards).
    """
    p, q = (shares(np.asarray(counts, dtype=np.float64) + 0.5) for counts in (reference, current))
    found: Float = ((q - p) * np.log(q / p)).sum(-1)
    return found


def kolmogorov_smirnov(reference: Any, current: Any) -> Float:
    """The largest difference of the distribution functions at the edges of bins: [..., K] twice -> [...]."""
    found: Float = np.abs(np.cumsum(shares(reference) - shares(current), -1)).max(-1)
    return found


def wasserstein(step: float) -> Distance:
    """The area between the distribution functions, of bins that are `step` wide."""

    def distance(reference: Any, current: Any) -> Float:
        found: Float = np.abs(np.cumsum(shares(reference) - shares(current), -1)).sum(-1) * step
        return found

    return distance


def second_share(reference: Any, current: Any) -> Float:
    """By how much the share of the second of two bins has changed: [..., 2] twice -> [...]."""
    found: Float = np.abs(shares(current)[..., 1] - shares(reference)[..., 1])
    return found


def met(distance: Distance) -> Distance:
    """The distance where both have any counts, and 0 where one has none: what nobody knows has not moved."""

    def found(reference: Any, current: Any) -> Float:
        some = (np.asarray(reference).sum(-1) > 0) & (np.asarray(current).sum(-1) > 0)
        measured: Float = np.where(some, distance(reference, current), 0.0)
        return measured

    return found


def left(reference: Any, current: Any) -> Float:
    """The share of the reference's events whose bins are empty now: [..., K] twice -> [...]."""
    found: Float = (shares(reference) * (np.asarray(current) == 0)).sum(-1)
    return found


def deciles(counts: Any) -> NDArray[np.int64]:
    """Which tenth of the events each item's popularity puts it into, from the most popular on: [V + 1] -> 0 to 9.

    Items with as many events share a tenth.
    """
    whole = np.asarray(counts).astype(np.int64)
    events = np.bincount(whole, whole.astype(np.float64))  # of the items with so many
    above = events[::-1].cumsum()[::-1] - events
    tenths: NDArray[np.int64] = np.minimum(above * DECILES // max(float(events.sum()), 1.0), DECILES - 1).astype(np.int64)
    return tenths[whole]


def popularity(reference: Any, current: Any) -> Float:
    """The population stability index over deciles of the reference's popularity, which compares ranks: [..., V + 1] -> [...].

    Deciles are always of the reference that is held against, never of the sample: an item is in a high one by chance, too.
    """
    reference, current = np.broadcast_arrays(np.asarray(reference, dtype=np.float64), np.asarray(current, dtype=np.float64))
    size = reference.shape[-1]
    rows = [
        [np.bincount(place, counts, DECILES) for counts in pair]
        for pair in zip(reference.reshape(-1, size), current.reshape(-1, size), strict=True)
        for place in [deciles(pair[0])]
    ]
    summed = np.asarray(rows).reshape(*reference.shape[:-1], 2, DECILES)
    return stability(summed[..., 0, :], summed[..., 1, :])


@dataclass(frozen=True)
class Embedded:
    """How far the mean vector of the events' items has moved, in deviations of the items' vectors."""

    vectors: Float  # [V + 1, D]

    def __call__(self, reference: Any, current: Any) -> Float:
        """[..., V + 1] twice -> [...]."""
        scale = max(float(np.sqrt(self.vectors[1:].var(0).sum())), 1e-12)
        moved = (shares(current) - shares(reference)) @ self.vectors
        found: Float = np.linalg.norm(moved, axis=-1) / scale
        return found


@dataclass(frozen=True)
class Statistic:
    """One way of looking at a period."""

    name: str
    table: str  # of `Counted`
    cause: Cause
    distance: Distance
    says: str  # what its value is
    most: float = math.inf  # that it can be

    def of(self, reference: Any, current: Any) -> Float:
        """The distance of two counts: [..., K] twice -> [...]."""
        return self.distance(reference, current)


STATISTICS = (
    Statistic(
        "new items",
        "new items",
        "items",
        second_share,
        "change of the share of events whose item was never seen before the period",
        1.0,
    ),
    Statistic("items left", "items", "items", left, "share of the reference's events whose items have none now", 1.0),
    Statistic(
        "new users",
        "new users",
        "users",
        second_share,
        "change of the share of events whose user was never seen before the period",
        1.0,
    ),
    Statistic("item mix", "items", "preference", jensen_shannon, "Jensen-Shannon divergence of known items, bits", 1.0),
    Statistic("popularity ranks", "items", "preference", popularity, "population stability index of the reference's deciles"),
    Statistic("ratings", "ratings", "preference", met(kolmogorov_smirnov), "Kolmogorov-Smirnov, ratings", 1.0),
    Statistic("rating levels", "ratings", "preference", met(stability), "population stability index of ratings"),
    Statistic(
        "categories", "categories", "preference", met(jensen_shannon), "Jensen-Shannon divergence of categories, bits", 1.0
    ),
    Statistic(
        "activity", "activity", "activity", kolmogorov_smirnov, "Kolmogorov-Smirnov, events of a user in the period", 1.0
    ),
    Statistic("gaps", "gap", "activity", kolmogorov_smirnov, "Kolmogorov-Smirnov, time since the event before", 1.0),
    Statistic("gap lengths", "gap", "activity", wasserstein(GAP_STEP), "Wasserstein distance of logarithms of seconds"),
    Statistic("hour of day", "hour", "activity", jensen_shannon, "Jensen-Shannon divergence, bits", 1.0),
    Statistic("day of week", "weekday", "activity", jensen_shannon, "Jensen-Shannon divergence, bits", 1.0),
)
"""Those that need no model, where their tables are there; `Embedded` is made for a model.

How long histories are is none of them: they grow with the age of every log, whatever anybody does.
"""
