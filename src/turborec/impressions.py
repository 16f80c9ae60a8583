"""Values of impressions, as MIND's official scorer defines them: each impression's candidates are ranked among themselves.

Facts of the definitions: Microsoft's evaluate.py for MIND (msnews.github.io): AUC, sum(label / rank) / sum(label) as MRR, and
nDCG with gains 2^label - 1 and discounts 1 / log2(rank + 1). Where scores tie, which a scorer of ranks cannot see, the value
is the mean over all orders of those that tie. Letters: I impressions, C candidates of all of them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Int64 = NDArray[np.int64]


def values(
    scores: NDArray[np.floating], clicked: NDArray[np.bool_ | np.uint8], offsets: Int64, cuts: Sequence[int] = (5, 10)
) -> dict[str, Floats]:
    """By name, a value of each impression, whose candidates lie from one of the offsets [I + 1] to the next: [C], [C] -> [I].

    NaN where it is not defined: without a click, and AUC with nothing but clicks.
    """
    if not np.isfinite(scores).all():
        raise ValueError("expected finite scores of impressions")
    sizes = np.diff(offsets)
    if not len(scores):
        return {name: np.full(len(sizes), np.nan) for name in ("auc", "mrr", *(f"ndcg@{cut}" for cut in cuts))}
    row = np.repeat(np.arange(len(sizes)), sizes)
    order = np.lexsort((-scores, row))
    score, click = scores[order], clicked[order].astype(np.float64)
    # Of each group of candidates with one score: the places that it takes together, from `first` to `last`, counted from 1.
    begins = np.ones(len(score), dtype=bool)
    begins[1:] = (score[1:] != score[:-1]) | (row[1:] != row[:-1])
    start = np.flatnonzero(begins)
    end = np.append(start[1:], len(score))
    group = row[start]
    first, last = start - offsets[group] + 1, end - offsets[group]
    clicks: Floats = np.add.reduceat(click, start)
    size = (end - start).astype(np.float64)

    def summed(of_groups: Floats) -> Floats:
        return np.bincount(group, of_groups, minlength=len(sizes)).astype(np.float64)

    def mean_of(worth: Floats) -> Floats:
        """What a place of the group is worth on the mean: worth [L + 1] of places 0, 1, … -> [G]."""
        total = np.cumsum(worth)
        worth_of_one: Floats = (total[last] - total[first - 1]) / size
        return worth_of_one

    places = np.arange(int(sizes.max(initial=0)) + 1, dtype=np.float64)
    positives = summed(clicks)
    negatives = sizes - positives
    none = size - clicks
    ahead = np.cumsum(none) - none - (np.cumsum(negatives) - negatives)[group]
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = summed(clicks * (ahead + none / 2))
        found = {"auc": 1 - lost / (positives * negatives)}
        inverse = np.divide(1.0, places, out=np.zeros_like(places), where=places > 0)
        found["mrr"] = summed(clicks * mean_of(inverse)) / positives
        discount = np.append(0.0, 1 / np.log2(places[1:] + 1))
        for cut in cuts:
            counted = np.where(places <= cut, discount, 0.0)
            found[f"ndcg@{cut}"] = summed(clicks * mean_of(counted)) / np.cumsum(counted)[positives.astype(np.int64)]
    return {name: np.where(positives > 0, value, np.nan) for name, value in found.items()}
