"""Intervals and p values by the bootstrap over users, and their correction for many comparisons.

Letters: U users, C columns (what is averaged over users: a metric, or a difference of two), R resamples.

What is a mean over something that users have several of, or none, such as impressions, is the mean of the users' own means,
each weighed by how many it is of; users are drawn with all they have (Cameron and Miller, 2015, on resampling clusters).
"""

import numpy as np
from numpy.typing import NDArray

from turborec.progress import task

Float64 = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95
CHUNK_BYTES = 32 * 2**20
"""Of the weights held at a time: one integer for each user and resample."""


def resampled_means(values: Float64, resamples: int = RESAMPLES, seed: int = 0, counts: Float64 | None = None) -> Float64:
    """Means of the columns in samples of U users drawn with replacement: [U, C] -> [R, C].

    `counts` [U, C] says of how many each value is the mean, one where None. All columns see the same samples, so differences
    between them are paired. How often each user is drawn is a row of weights; the means are the product of weights and
    values, as many rows at a time as `CHUNK_BYTES` allows.
    """
    users = len(values)
    if counts is not None and (counts != 1).any():
        sums = resampled_means(np.concatenate([values * counts, counts], axis=1), resamples, seed)
        parts, wholes = np.split(sums, 2, axis=1)
        with np.errstate(invalid="ignore"):
            ratios: Float64 = parts / wholes  # NaN where a sample has nobody with a value
        return ratios
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    at_once = max(1, CHUNK_BYTES // (8 * users))
    with task("Resampling users", resamples, "samples") as advance:
        for lo in range(0, resamples, at_once):
            rows = min(at_once, resamples - lo)
            drawn = generator.integers(0, users, (rows, users)) + users * np.arange(rows)[:, None]
            weights = np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users)
            means[lo : lo + rows] = weights @ values / users
            advance(rows)
    return means


def percentile_intervals(means: Float64, level: float = LEVEL) -> tuple[Float64, Float64]:
    """Between which bounds the middle share `level` of the resampled means lies: [R, C] -> two [C]."""
    bounds = [(1 - level) / 2, (1 + level) / 2]
    low, high = (np.nanquantile if np.isnan(means).any() else np.quantile)(means, bounds, axis=0)
    return low, high


def p_values(differences: Float64) -> Float64:
    """Two-sided p values of "the mean difference is 0" from resampled means: [R, C] -> [C].

    Twice the share of resamples on the other side of 0, the sample itself counted as one of them (Davison and Hinkley,
    1997, section 4.2), so that none is below 2 / (R + 1).
    """
    resamples = np.count_nonzero(~np.isnan(differences), axis=0)
    not_above, not_below = (1 + np.count_nonzero(side, axis=0) for side in (differences <= 0, differences >= 0))
    smaller: Float64 = np.minimum(not_above, not_below)
    values: Float64 = np.minimum(1.0, 2 * smaller / (resamples + 1))
    return values


def holm(values: Float64) -> Float64:
    """Correct p values for being many, in any dependence: [C] -> [C] (Holm, 1979).

    The smallest is multiplied by C, the next by C - 1, and so on; none becomes smaller than the one before it.

    >>> holm(np.array([0.04, 0.01, 0.03])).tolist()  # .01 x 3, .03 x 2, then .04 x 1 is not less than .06
    [0.06, 0.03, 0.06]
    """
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(1.0, stepped)
    return corrected
