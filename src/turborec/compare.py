"""Runs and anchors side by side on the same users: paired differences with intervals, corrected p values, slices.

Letters: U users, C comparisons.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turborec.contestants import Contestant, differing_choices, merge_seeds, metrics_of, read_all, store_of
from turborec.data.store import Part, Store
from turborec.errors import UserError, closest
from turborec.evaluate import History
from turborec.intervals import LEVEL, RESAMPLES, holm, p_values, percentile_intervals, resampled_means

Float64 = NDArray[np.float64]

SHOWN = ("hr@10", "ndcg@10", "mrr")
"""The metrics that are compared where none is asked for."""
FEWEST_USERS = 100
"""A slice of fewer users is left out: percentile intervals of so few are too narrow (docs/log.md)."""
SIGNIFICANT = 0.05
COLD = "0: a cold item"
"""The slice of the users who have a target without a training event."""


@dataclass(frozen=True)
class Terms:
    """What is compared, and how finely."""

    part: Part = "test"
    metrics: tuple[str, ...] = ()  # those of `SHOWN` that there are
    history: History | None = None  # the one that counts by the protocol cards
    store: Path | None = None  # for the popularity of items; where the run says when None
    resamples: int = RESAMPLES
    seed: int = 0  # of the resamples


@dataclass(frozen=True)
class Difference:
    """A contestant against the baseline in one metric, over the same users."""

    contestant: str
    metric: str
    value: float
    baseline: float
    difference: float
    low: float  # of the 95 % interval of the difference
    high: float
    p: float
    corrected: float  # p, for being one of many

    @property
    def verdict(self) -> str:
        """Which difference is shown, after the correction: better, worse or none."""
        if self.corrected >= SIGNIFICANT:
            return "none"
        return "better" if self.difference > 0 else "worse"


@dataclass(frozen=True)
class Slice:
    """The same for some of the users, in one metric."""

    topic: str
    name: str
    users: int
    differences: list[Difference]


@dataclass(frozen=True)
class Comparison:
    """What was found; the first contestant is the baseline of all differences."""

    contestants: list[Contestant]
    history: History
    metrics: list[str]
    differences: list[Difference]
    slices: list[Slice]
    remarks: list[str]

    @property
    def baseline(self) -> Contestant:
        """What the others are compared with."""
        return self.contestants[0]

    def value(self, one: Contestant, metric: str) -> float:
        """A contestant's mean over users."""
        return one.mean(self.history, metric)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "baseline": self.baseline.name,
            "part": self.baseline.card["part"],
            "users": len(self.baseline.users),
            "history": self.history,
            "contestants": [
                {
                    "name": c.name,
                    "folder": str(c.folder),
                    "model": c.model,
                    "values": {m: self.value(c, m) for m in self.metrics},
                    "runs": [
                        {"folder": str(run.folder), "seed": run.seed, "values": {m: self.value(run, m) for m in self.metrics}}
                        for run in c.members or (c,)
                    ],
                }
                for c in self.contestants
            ],
            "differences": [{**asdict(d), "verdict": d.verdict} for d in self.differences],
            "slices": [asdict(s) for s in self.slices],
            "remarks": self.remarks,
            "protocol": self.baseline.card,
        }


def compare(names: Sequence[str], terms: Terms) -> Comparison:
    """Compare the contestants called `names` (RUN, or RUN/MODEL) with the first of them.

    A UserError where there is nothing to compare or the protocol cards differ.
    """
    if len(names) < 2:
        raise UserError(f"Name at least two contestants, RUN or RUN/MODEL such as {names[0] if names else 'RUN'}/markov.")
    everybody = read_all(names, terms.part, terms.store, terms.history)
    contestants, remarks = merge_seeds(everybody)
    remarks += differing_choices(everybody)
    history = terms.history or contestants[0].card["history"]
    main = str(contestants[0].recipe.get("select"))
    metrics = _chosen(terms.metrics, metrics_of(contestants, history), main)
    found = corrected(differences(contestants, history, metrics, terms))
    main = main if main in metrics else metrics[0]
    groups, left_out = slices_of(contestants[0], terms.store, main)
    slices = [
        Slice(topic, name, len(rows), differences(contestants, history, [main], terms, rows)) for topic, name, rows in groups
    ]
    if len(contestants[0].users) < FEWEST_USERS:
        remarks.append(f"There are fewer than {FEWEST_USERS} users: the intervals are too narrow and p too small.")
    remarks += [_spread(one, history, metrics) for one in contestants if one.members]
    remarks += [_method(contestants, metrics, terms), *([_of_slices(main, slices, len(contestants))] if slices else [])]
    return Comparison(contestants, history, metrics, found, _corrected_slices(slices), remarks + left_out)


def slices_of(
    one: Contestant, given: Path | None = None, metric: str = "mrr"
) -> tuple[list[tuple[str, str, NDArray[np.int64]]], list[str]]:
    """Topic, name and rows of the users of every slice that have a value of the metric, and why some are left out."""
    found = [
        ("events of the history", _span(low, high), rows)
        for low, high, rows in _quantile_groups(one.events.astype(np.float64), 4)
    ]
    remarks = []
    try:
        by_popularity = _by_popularity(one, store_of(one, given))
    except UserError as error:
        remarks.append(f"The slices by popularity and of cold items are left out, because the store is not at hand: {error}")
    else:
        found += by_popularity
        if not any(name.startswith(COLD) for _, name, _ in by_popularity):
            remarks.append("There are no cold items: every target has training events.")
    counted = one.count_of(metric) > 0
    found = [(topic, name, rows[counted[rows]]) for topic, name, rows in found]
    few = [f"{topic}, {name} ({len(rows)})" for topic, name, rows in found if len(rows) < FEWEST_USERS]
    if few:
        remarks.append(f"Slices of fewer than {FEWEST_USERS} users are left out: {'; '.join(few)}.")
    return [group for group in found if len(group[2]) >= FEWEST_USERS], remarks


def _by_popularity(one: Contestant, store: Store) -> list[tuple[str, str, NDArray[np.int64]]]:
    """Users with a target that has no training event, and thirds of the others by how many their targets have."""
    events = store.item_counts()
    ids, which = np.unique(np.asarray(one.targets), return_inverse=True)
    of_target = events[store.item_ids.find(ids.tolist()) + 1][which]
    counts = np.diff(one.offsets)
    coldest = np.minimum.reduceat(of_target, one.offsets[:-1])
    mean = np.add.reduceat(of_target, one.offsets[:-1]) / counts
    warm, cold = np.flatnonzero(coldest > 0), np.flatnonzero(coldest == 0)
    several = bool(counts.max() > 1)
    topic = f"training events of the target{'s, their mean' * several}"
    # A user's values are over all targets, so with several of them the warm ones count here, too.
    found = [(topic, f"{COLD} among warm ones" if several else COLD, cold)] if len(cold) else []
    return found + [
        (topic, _span(low, high), warm[rows]) for low, high, rows in (_quantile_groups(mean[warm], 3) if len(warm) else ())
    ]


def _span(low: float, high: float) -> str:
    return f"{low:,.0f} to {high:,.0f}" if low < high else f"{low:,.0f}"


def _quantile_groups(values: Float64, parts: int) -> list[tuple[float, float, NDArray[np.int64]]]:
    """Least and greatest value and rows of up to `parts` groups of like size; equal values stay together."""
    edges = np.unique(np.quantile(values, np.arange(1, parts) / parts, method="inverted_cdf"))
    group = np.searchsorted(edges, values, side="left")
    members = [np.flatnonzero(group == number) for number in np.unique(group)]
    return [(float(values[rows].min()), float(values[rows].max()), rows) for rows in members]


def _chosen(asked: tuple[str, ...], known: list[str], select: str) -> list[str]:
    if unknown := [name for name in asked if name not in known]:
        raise UserError(f"No value of {unknown[0]!r} for every user and contestant{closest(unknown[0], known)}.")
    chosen = list(dict.fromkeys(asked)) or [name for name in dict.fromkeys((select, *SHOWN)) if name in known] or known
    if not chosen:
        raise UserError("The contestants have no metric of users in common: evaluate them again with the same metrics.")
    return chosen


def differences(
    contestants: Sequence[Contestant],
    history: History,
    metrics: list[str],
    terms: Terms,
    rows: NDArray[np.int64] | slice = slice(None),
) -> list[Difference]:
    """Every metric and contestant against the first, not yet corrected."""
    pairs = [(metric, one) for metric in metrics for one in contestants[1:]]
    base = contestants[0]
    columns = [one.values[history][metric][rows] - base.values[history][metric][rows] for metric, one in pairs]
    counts = np.stack([base.count_of(metric)[rows] for metric, _ in pairs], axis=1)
    means = resampled_means(np.stack(columns, axis=1), terms.resamples, terms.seed, counts)
    p = p_values(means)
    values = [(one.mean(history, metric, rows), base.mean(history, metric, rows)) for metric, one in pairs]
    bounds = np.stack([*percentile_intervals(means), p, p], axis=1).tolist()
    return [
        Difference(one.name, metric, value, of_base, value - of_base, *numbers)
        for (metric, one), (value, of_base), numbers in zip(pairs, values, bounds, strict=True)
    ]


def corrected(found: list[Difference]) -> list[Difference]:
    """The same with p values corrected for all that are in the list."""
    values = holm(np.asarray([one.p for one in found]))
    return [replace(one, corrected=float(p)) for one, p in zip(found, values, strict=True)]


def _corrected_slices(slices: list[Slice]) -> list[Slice]:
    """All comparisons in slices are one family."""
    flat = iter(corrected([one for part in slices for one in part.differences]))
    return [replace(part, differences=[next(flat) for _ in part.differences]) for part in slices]


def _method(contestants: Sequence[Contestant], metrics: list[str], terms: Terms) -> str:
    count = len(metrics) * (len(contestants) - 1)
    several = " with all that they were shown" * any(metric in contestants[0].counts for metric in metrics)
    return (
        f"Differences are paired by user, with {LEVEL:.0%} percentile intervals from {terms.resamples:,} bootstrap resamples "
        f"of the {len(contestants[0].users):,} users{several}. p is two-sided and from the same resamples; by Holm's method it "
        f"is corrected for the {count} comparison{'s' * (count > 1)} of the table, the intervals are not. The intervals are "
        "about other users; what another seed would give is not in them."
    )


def _spread(one: Contestant, history: History, metrics: list[str]) -> str:
    """What the seeds of a contestant gave, each by itself."""
    told = []
    for metric in metrics:
        means = [run.mean(history, metric) for run in one.members]
        told.append(f"{metric} {', '.join(f'{mean:.4f}' for mean in means)} (standard deviation {np.std(means, ddof=1):.4f})")
    return f"The seeds of {one.name}, each by itself: {'; '.join(told)}."


def _of_slices(metric: str, slices: list[Slice], contestants: int) -> str:
    count = len(slices) * (contestants - 1)
    return (
        f"Slices show {metric}; their p values are corrected for the {count} comparisons within slices, apart from the table."
    )
