"""Which periods differ from those before them by more than these differ among themselves.

Letters: P periods of the reference, G groups of users, K bins, S statistics, W periods that are looked at, R resamples.

A value is held against two thresholds and must be beyond both. The first is the spread of samples of the reference that are as
large: cells of (period, group of users), drawn without replacement, against the rest. The second is the spread of whole
periods of the reference, each against the others: what seasons and campaigns do to all users at once. Both are for all
statistics and all periods that are looked at together, at a family-wise level. Of shares there is a third, what so few counts
say: where the reference has nothing new, no sample of it has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turborec.drift.counts import Counted
from turborec.drift.statistics import Statistic, second_share, shares
from turborec.errors import UserError
from turborec.progress import task

Float = NDArray[np.float64]

RESAMPLES = 200
AT_ONCE = 2**20
"""Numbers in the counts of the samples that are looked at together."""
STEP = 1.2
"""How much larger one size of samples is than the next."""
FEWEST_PERIODS = 3
"""Periods of the reference from which on their own spread is known at all."""


@dataclass(frozen=True)
class Moved:
    """What became of all statistics in all periods that were looked at."""

    statistics: tuple[Statistic, ...]
    values: Float  # [S, W]
    thresholds: Float  # [S, W]: the largest of all; infinite where the reference has too few periods to say

    @property
    def beyond(self) -> NDArray[np.bool_]:
        """[S, W]."""
        return self.values > self.thresholds

    @property
    def untold(self) -> NDArray[np.bool_]:
        """[S, W]: what cannot be told, as no value would be beyond the threshold."""
        most = np.asarray([statistic.most for statistic in self.statistics])
        found: NDArray[np.bool_] = (self.thresholds >= most[:, None]) | np.isinf(self.thresholds)
        return found

    def first(self) -> int | None:
        """The first period in which anything has moved."""
        columns = np.flatnonzero(self.beyond.any(0))
        return int(columns[0]) if len(columns) else None


def moved(
    counted: Counted,
    reference: Sequence[int],
    current: Sequence[int],
    statistics: Sequence[Statistic],
    level: float = 0.05,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Moved:
    """Compare each of the `current` periods with all of the `reference`, by every statistic."""
    reference, current = list(reference), list(current)
    windows, groups = len(current), counted.tables["items"].shape[1]
    # What one of several periods may reach by chance, so that the greatest of them all does by the level.
    single = (1 - level) ** (1 / windows)
    number = max(resamples, math.ceil(2 / (1 - single)))
    sizes = _sizes(counted, reference, current, groups)
    samples = [_chosen(len(reference) * groups, size, number, seed) for size in np.unique(sizes)]
    values, thresholds = (np.zeros((len(statistics), windows)) for _ in range(2))
    draws, least = np.zeros((len(samples), len(statistics), number)), np.zeros_like(values)
    tables = list(dict.fromkeys(statistic.table for statistic in statistics))
    with task("Resampling the reference", len(tables) * len(samples), "samples") as advance:
        for table in tables:
            rows = [row for row, statistic in enumerate(statistics) if statistic.table == table]
            counts = counted.tables[table]
            periods = counts[reference].sum(1, dtype=np.float64)
            cells, total = counts[reference].reshape(-1, counts.shape[2]), periods.sum(0)  # [P * G, K]
            now = counts[current].sum(1, dtype=np.float64)
            for row in rows:
                values[row] = statistics[row].of(total, now)
                least[row] = _between(statistics[row], periods, level / values.size)
                if statistics[row].distance is second_share:
                    least[row] = np.maximum(least[row], _rare(total, now.sum(1), level / values.size))
            for place, chosen in enumerate(samples):
                draws[place, rows] = _drawn([statistics[row] for row in rows], cells, total, chosen)
                advance(1)
    for place, size in enumerate(np.unique(sizes)):
        mean, deviation = draws[place].mean(1), np.maximum(draws[place].std(1), 1e-12)
        greatest = ((draws[place] - mean[:, None]) / deviation[:, None]).max(0)
        thresholds[:, sizes == size] = (mean + np.quantile(greatest, single) * deviation)[:, None]
    return Moved(tuple(statistics), values, np.maximum(thresholds, least))


def _sizes(counted: Counted, reference: list[int], current: list[int], groups: int) -> NDArray[np.int64]:
    """Cells of the reference with about as many events as each period has: samples of one size serve several periods."""
    share = np.minimum(counted.events[current] / max(int(counted.events[reference].sum()), 1), 0.5)
    steps = np.round(np.log(np.maximum(share * len(reference) * groups, 1)) / math.log(STEP))
    found: NDArray[np.int64] = np.maximum(1, np.round(STEP**steps)).astype(np.int64)
    return found


def _chosen(cells: int, size: int, number: int, seed: int) -> NDArray[np.float32]:
    """Samples of so many cells, without replacement: [R, P * G] of 0 and 1."""
    generator = np.random.default_rng([seed, size])
    order = generator.random((number, cells)).argpartition(size - 1, axis=1)[:, :size]
    chosen = np.zeros((number, cells), np.float32)
    np.put_along_axis(chosen, order, 1.0, axis=1)
    return chosen


def _drawn(statistics: Sequence[Statistic], cells: Any, total: Float, chosen: NDArray[np.float32]) -> Float:
    """The statistics of each sample against the rest: [S, R]."""
    at_once = max(1, AT_ONCE // len(total))  # as many as stay in the cache
    found = np.zeros((len(statistics), len(chosen)))
    for begin in range(0, len(chosen), 16 * at_once):
        drawn = chosen[begin : begin + 16 * at_once] @ cells  # more, as every product reads all cells
        for lo in range(0, len(drawn), at_once):
            some = drawn[lo : lo + at_once]
            rest = total - some
            for row, statistic in enumerate(statistics):
                found[row, begin + lo : begin + lo + len(some)] = statistic.of(rest, some)
    return found


def _between(statistic: Statistic, periods: Float, level: float) -> float:
    """What one more period like those of the reference stays below, with this probability of error: [P, K] -> a value.

    The prediction interval of a normal sample; infinite where there are too few periods to say.
    """
    number = len(periods)
    if number < FEWEST_PERIODS:
        return np.inf
    spread = statistic.of(periods.sum(0) - periods, periods)
    factor = float(_distributions().t.ppf(1 - level, number - 1)) * np.sqrt(1 + 1 / number)
    return float(spread.mean() + factor * spread.std(ddof=1))


def _rare(reference: Float, events: Float, level: float) -> Float:
    """By how much the share of the second of two bins may rise in so many events by counting alone: [2], [W] -> [W].

    What is rare is Poisson: after the reference's count the next is negative binomial (with the prior of Jeffreys 1946).
    """
    total = max(float(reference.sum()), 1.0)
    most = _distributions().nbinom.ppf(1 - level, reference[1] + 0.5, total / (total + events))
    found: Float = most / np.maximum(events, 1) - shares(reference)[1]
    return found


def _distributions() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise UserError("Drift needs SciPy: pip install 'turborec[drift]'.") from error
    return stats
