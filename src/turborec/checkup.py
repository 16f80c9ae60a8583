"""A model and its data looked at again: have the data moved, has the model lost, and why.

Letters: U users, E events, V items, P periods, N sampled targets, W periods that are looked at, R resamples.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from turborec.assembly import Assembly
from turborec.cutting import Plan
from turborec.data.loader import evaluation_batches
from turborec.data.store import Histories, Store
from turborec.drift import ratings
from turborec.drift.attribution import CAUSES, Targets, chance, losses
from turborec.drift.counts import Counted, count, ranges
from turborec.drift.moved import RESAMPLES, Moved, moved
from turborec.drift.statistics import STATISTICS, Embedded, Statistic, deciles, kolmogorov_smirnov, shares
from turborec.errors import UserError
from turborec.evaluate import evaluate
from turborec.progress import task
from turborec.worlds import World

Int64 = NDArray[np.int64]
Float = NDArray[np.float64]

LEVEL = 0.05
"""The probability of telling anything of data that have not moved, and of a model that has not lost."""
SAMPLED = 2000
"""Users of each period whom the model is asked for."""
BOOTSTRAP = 2000
"""Resamples of users behind an interval of a metric."""

Verdict = Literal["none", "warning", "drift"]
CODES: dict[Verdict, int] = {"none": 0, "warning": 3, "drift": 4}
SAYS: dict[Verdict, str] = {
    "none": "No more is shown than chance does, of the data or of a model.",
    "warning": "The data have moved; no loss of a model is shown.",
    "drift": "The model has lost.",
}


@dataclass(frozen=True)
class Ranked:
    """How well the model ranks what the sampled users of a period did next."""

    period: str
    targets: Targets
    scores: Float  # [N]: the highest score of any item

    @property
    def value(self) -> float:
        """The mean of the metric."""
        return float(self.targets.values.mean())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        new = {name: float(mask.mean()) for name, mask in (("items", self.targets.new_item), ("users", self.targets.new_user))}
        return {"period": self.period, "value": self.value, "targets": len(self.targets.values), "new": new}


@dataclass(frozen=True)
class Loss:
    """What the model has lost from the reference to a period, with its interval at the family-wise level."""

    period: str
    value: float
    low: float
    high: float
    causes: dict[str, tuple[float, float, float]]  # value, low and high of each of `CAUSES`
    chance: float  # how often targets dealt to both sides by chance would tell of as great a loss
    shown: bool  # both by the interval and by chance
    score_shift: float  # Kolmogorov-Smirnov distance of the highest scores


@dataclass(frozen=True)
class Mix:
    """What events were made up of before, and in each period that is looked at: shares of ratings or of categories."""

    about: str
    names: list[str]  # [K]
    before: Float  # [K]
    now: Float  # [W, K]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"names": self.names, "before": self.before.tolist(), "periods": self.now.tolist()}

    def largest(self, number: int) -> list[tuple[str, float, list[float]]]:
        """The parts whose shares have changed by most in any period: name, before, now."""
        order = np.argsort(-np.abs(self.now - self.before).max(0), kind="stable")[:number]
        return [(self.names[part], float(self.before[part]), self.now[:, part].tolist()) for part in order]


@dataclass(frozen=True)
class Row:
    """A statistic as it is shown."""

    statistic: Statistic
    cells: list[tuple[float, bool]]  # [W]: the value, and whether it is beyond its threshold
    threshold: str


@dataclass(frozen=True)
class Checkup:
    """What was found."""

    plan: Plan
    counted: Counted
    data: Moved
    metric: str | None
    ranked: list[Ranked]  # the reference first; none without a model
    losses: list[Loss]
    mixes: list[Mix]  # of ratings and categories, where they are looked at
    facts: dict[str, Any]

    @property
    def verdict(self) -> Verdict:
        """Drift where the model has lost, a warning where the data alone have moved."""
        if any(loss.shown for loss in self.losses):
            return "drift"
        return "warning" if self.data.beyond.any() else "none"

    def rows(self) -> list[Row]:
        """The statistics as they are shown."""
        data = self.data
        told = zip(data.statistics, data.values, data.thresholds, data.beyond, data.untold, strict=True)
        return [
            Row(statistic, list(zip(values.tolist(), beyond.tolist(), strict=True)), _threshold(thresholds[~untold]))
            for statistic, values, thresholds, beyond, untold in told
        ]

    def has_moved(self, table: str) -> bool:
        """Whether any statistic of this table has."""
        return any(b.any() for s, b in zip(self.data.statistics, self.data.beyond, strict=True) if s.table == table)

    def sentences(self) -> list[str]:
        """What has moved since when, what was lost in which period and mostly by what, and what cannot be told."""
        names = [name.split(" to ")[0] for name in self.plan.names]
        moved = [f"{s.name} {_when(names, b)}" for s, b in zip(self.data.statistics, self.data.beyond, strict=True) if b.any()]
        lost = [
            f"{name} ({loss.value:+.4f}, mostly {max(loss.causes, key=lambda cause: loss.causes[cause][0])})"
            for name, loss in zip(names, self.losses, strict=bool(self.losses))
            if loss.shown
        ]
        untold = [
            s.name if u.all() else f"{s.name} in {u.sum()} of {len(u)} periods"
            for s, u in zip(self.data.statistics, self.data.untold, strict=True)
            if u.any()
        ]
        found = [f"Moved: {', '.join(moved)}."] * bool(moved) + [f"Lost in: {', '.join(lost)}."] * bool(lost)
        share = f"{len(untold)} of {len(self.data.statistics)} statistics cannot be told from so few or so different periods: "
        return found + [f"{share}{', '.join(untold)}."] * bool(untold)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        names, data = self.plan.periods.names, self.data
        rows = zip(data.statistics, data.values, data.thresholds, data.beyond, data.untold, strict=True)
        return {
            "verdict": self.verdict,
            "code": CODES[self.verdict],
            "reference": [names[p] for p in self.plan.reference],
            "periods": self.plan.names,
            "events": self.counted.events[self.plan.current].tolist(),
            "users": self.counted.users[self.plan.current].tolist(),
            "data": [
                {"statistic": s.name, "cause": s.cause, "is": s.says, "values": v.tolist(), "thresholds": _finite(t)}
                | {"moved": beyond.tolist(), "untold": untold.tolist()}
                for s, v, t, beyond, untold in rows
            ],
            "says": self.sentences(),
            "metric": self.metric,
            "values": [one.to_json() for one in self.ranked],
            "losses": [vars(loss) for loss in self.losses],
            "shares": {mix.about: mix.to_json() for mix in self.mixes},
            **self.facts,
        }


def _threshold(told: Float) -> str:
    """Those of the periods that can be told, from the least to the greatest: [W] -> a text."""
    if not len(told):
        return "–"
    low, high = f"{told.min():.4f}", f"{told.max():.4f}"
    return high if low == high else f"{low} to {high}"


def _when(names: list[str], beyond: NDArray[np.bool_]) -> str:
    """In which periods: [W] twice."""
    places = np.flatnonzero(beyond).tolist()
    if len(places) == 1 and len(names) > 1:
        return f"in {names[places[0]]}"
    since = f"since {names[places[0]]}"
    return since if len(places) == len(names) - places[0] else f"{since} ({len(places)} of {len(names)} periods)"


def _finite(thresholds: Float) -> list[float | None]:
    """JSON has no infinity."""
    return [one if math.isfinite(one) else None for one in thresholds.tolist()]


def check(
    world: World,
    chosen: Plan,
    assembly: Assembly | None = None,
    sampled: int = SAMPLED,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Checkup:
    """Look at the data of the periods and, where there is a model, at what it makes of them."""
    levels = None if world.log.values is None else ratings.levels(world.log, chosen.periods, chosen.reference)
    counted = count(world.log, chosen.periods, seed, levels)
    statistics = [one for one in STATISTICS if one.table in counted.tables]
    if vectors := _vectors(world, assembly):
        statistics.append(
            Statistic("item vectors", "items", "preference", vectors, "shift of the mean vector, in deviations of items")
        )
    data = moved(counted, chosen.reference, chosen.current, statistics, level, resamples, seed)
    remarks = [*world.remarks, *chosen.remarks, *_unrated(counted)]
    facts = {"level": level, "resamples": resamples, "seed": seed, "remarks": remarks}
    bins = {"ratings": [] if levels is None else ratings.names(levels)}
    bins["categories"] = list(world.log.categories.names) if world.log.categories else []
    mixes = [_mix(about, names, counted, chosen) for about, names in bins.items() if names]
    if assembly is None:
        return Checkup(chosen, counted, data, None, [], [], mixes, facts)
    ranked = list(_ranked(world, chosen, assembly, sampled, seed))
    found = [_lost(ranked[0], one, level / len(ranked[1:]), seed) for one in ranked[1:]]
    return Checkup(chosen, counted, data, assembly.recipe.select, ranked, found, mixes, facts | {"sampled_users": sampled})


def _mix(about: str, names: list[str], counted: Counted, chosen: Plan) -> Mix:
    """The shares of what has any."""
    totals = counted.tables[about].sum(1, dtype=np.float64)
    before, now = shares(totals[chosen.reference].sum(0)), shares(totals[chosen.current])
    some = np.flatnonzero((before > 0) | (now > 0).any(0))
    return Mix(about, [names[part] for part in some], before[some], now[:, some])


def _unrated(counted: Counted) -> list[str]:
    """A remark on events whose rating nobody knows, where ratings are looked at."""
    if "ratings" not in counted.tables:
        return []
    total = int(counted.events.sum())
    lacking = total - int(counted.tables["ratings"].sum(dtype=np.float64))
    return [f"{lacking:,} of {total:,} events have no rating, and are left out where ratings are compared."] * bool(lacking)


def _vectors(world: World, assembly: Assembly | None) -> Embedded | None:
    """How the mean vector of items moves, where the model has a vector for each item and the world no other items."""
    table = getattr(getattr(assembly and assembly.model, "items", None), "weight", None)
    if not isinstance(table, torch.Tensor) or len(table) != len(world.catalogue):
        return None
    return Embedded(table.detach().double().cpu().numpy())


def _ranked(world: World, chosen: Plan, assembly: Assembly, sampled: int, seed: int) -> Iterator[Ranked]:
    """The model's values on events that training has not seen: before the seam, and in each period after it."""
    edges, names = chosen.periods.edges, chosen.periods.names
    spans = [(world.validates, world.begins)] + [(int(edges[p]), int(edges[p + 1])) for p in chosen.current]
    if world.validates >= world.begins:
        raise UserError(
            "No event lies between what the model was trained on and what is looked at: leave a validation part there."
        )
    called = ["before", *(names[p] for p in chosen.current)]
    with task("Ranking periods", len(spans), "periods") as advance:
        for name, places in zip(called, sampled_events(world, spans, sampled, seed), strict=True):
            if len(places) < 2:
                raise UserError(f"No user with a history has an event in {name}: choose longer periods.")
            yield ranked_at(world, assembly, name, places)
            advance(1)


def sampled_events(world: World, spans: Sequence[tuple[int, int]], most: int, seed: int) -> list[Int64]:
    """For each span of time, one event of each of `most` users with a history before it, by chance: places in the log."""
    offsets, times = world.log.offsets, world.log.times
    generator = np.random.default_rng(seed)
    found: list[list[Int64]] = [[] for _ in spans]
    for lo, hi in ranges(offsets):
        begin, end = int(offsets[lo]), int(offsets[hi])
        when, owner = np.asarray(times[begin:end]), np.repeat(np.arange(lo, hi), np.diff(offsets[lo : hi + 1]))
        # Never one that the model was trained on: a part that is not cut by time has such after others that it was not.
        preceded = np.arange(begin, end) - offsets[owner] >= np.maximum(1, world.trained[owner])
        for places, (first, last) in zip(found, spans, strict=True):
            inside = np.flatnonzero(preceded & (when >= first) & (when < last))
            order = np.lexsort((generator.random(len(inside)), owner[inside]))
            lead = np.flatnonzero(np.diff(owner[inside][order], prepend=-1))
            places.append(begin + inside[order][lead])
    every = (np.concatenate(places) for places in found)
    return [np.sort(generator.choice(one, min(most, len(one)), replace=False)) for one in every]


def ranked_at(world: World, assembly: Assembly, name: str, places: Int64) -> Ranked:
    """Rank the events at these places, each after the history before it. Items that the model does not have rank nowhere."""
    log = world.log
    owner = np.searchsorted(log.offsets, places, side="right") - 1
    begin = log.offsets[owner]
    lengths = places - begin + 1
    index = np.arange(lengths.sum()) + np.repeat(begin - (np.cumsum(lengths) - lengths), lengths)
    items, times = world.catalogue[np.asarray(log.items)[index]], np.asarray(log.times)[index]
    target = world.catalogue[np.asarray(log.items)[places]]
    row = np.repeat(np.arange(len(places)), lengths)
    last = np.cumsum(lengths) - 1
    kept = items > 0  # the history of what the model knows
    histories = np.bincount(row[kept & ~np.isin(np.arange(len(row)), last)], minlength=len(places))
    asked = (target > 0) & (histories > 0)
    kept &= asked[row]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row[kept], minlength=len(places))[asked])]).astype(np.int64)
    card = {**assembly.store.card, "counts": {**assembly.store.card["counts"], "users": int(asked.sum())}}
    cuts = np.repeat(offsets[1:, None] - 1, 2, axis=1)
    shown = Histories(offsets, items[kept].astype(np.int32), times[kept])
    small = Store(Path(), card, shown, cuts, np.full(int(asked.sum()), 4, np.uint8))
    values, scores = np.zeros(len(places)), np.full(len(places), np.nan)
    if asked.any():
        values[asked], scores[asked] = _evaluated(assembly, small)
    raw = np.asarray(log.items)[places]
    kind = np.minimum(np.log2(1 + histories).astype(np.int64), 9) * 10 + deciles(assembly.store.item_counts())[target]
    targets = Targets(values, ~world.trained_items[raw], ~world.trained_users[owner], kind)
    return Ranked(name, targets, scores[asked])


def _evaluated(assembly: Assembly, small: Store) -> tuple[Float, Float]:
    """The metric that selects epochs, and the highest score of any item, of each user of a store."""
    recipe, model, device = assembly.recipe, assembly.model, assembly.device
    config = recipe.evaluation.without_lists()
    model.eval()
    with torch.no_grad():
        batches = list(evaluation_batches(small, "test", recipe.batches))
        scorer = model.scorer()
        found = evaluate(scorer, batches, small, "test", config, device, recipe.batches.max_length)
        scores = np.zeros(small.num_users)
        for batch in batches:
            state = scorer.users(batch.to(device))
            scores[batch.users.numpy()] = scorer.score(state, 1, small.num_items + 1).amax(1).cpu().numpy()
    return found.per_user[config.history][recipe.select], scores


def _lost(reference: Ranked, current: Ranked, level: float, seed: int) -> Loss:
    found, drawn = losses(reference.targets, current.targets, BOOTSTRAP, seed)
    low, high = np.quantile(np.column_stack([drawn.sum(1), drawn]), [level / 2, 1 - level / 2], axis=0)
    causes = {name: (float(found[i]), float(low[i + 1]), float(high[i + 1])) for i, name in enumerate(CAUSES)}
    shift = 0.0
    if len(reference.scores) and len(current.scores):
        edges = np.quantile(reference.scores, np.linspace(0, 1, 51)[1:-1])
        counts = [np.bincount(np.searchsorted(edges, one.scores), minlength=50) for one in (reference, current)]
        shift = float(kolmogorov_smirnov(*counts))
    number = max(BOOTSTRAP, math.ceil(8 / level))
    dealt = chance(reference.targets, current.targets, number, seed)
    shown = bool(low[0] > 0 and dealt <= level / 2)
    return Loss(current.period, float(found.sum()), float(low[0]), float(high[0]), causes, dealt, shown, shift)
