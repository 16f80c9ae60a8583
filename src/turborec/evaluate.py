"""Exact evaluation over whole catalogues: ranks to metrics, per-user values, and the protocol card they carry.

Letters: U users, P (user, target) pairs, V items.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator

from turborec import __version__, impressions
from turborec.contract import Scorer
from turborec.data.store import Part, Store
from turborec.errors import DivergedError, UserError
from turborec.files import write_whole
from turborec.metrics import (
    ARP,
    HR,
    MAP,
    MRR,
    NDCG,
    TIES,
    CatalogueAUC,
    Coverage,
    Exposure,
    Float64,
    ImpressionMetric,
    ImpressionNDCG,
    Int64,
    ListMetric,
    Metric,
    Precision,
    Ranks,
    Recall,
    definition,
)
from turborec.progress import task
from turborec.ranking import Ranker, Shown, Tally, Targets, UserBatch
from turborec.recipe import Config

History = Literal["masked", "kept"]
HISTORIES: tuple[History, ...] = ("masked", "kept")
"""Masked: items of the user's history are no candidates, unless they are targets. Kept: every item is a candidate."""


class Evaluation(Config):
    """How a model is measured."""

    metrics: tuple[Metric, ...] = (
        *(HR(k=k) for k in (1, 5, 10, 20)),
        *(NDCG(k=k) for k in (5, 10, 20)),
        *(Recall(k=k) for k in (10, 20)),
        Precision(k=10),
        MAP(k=10),
        MRR(),
        CatalogueAUC(),
        Coverage(k=10),
        ARP(k=10),
    )
    history: History = Field("masked", description="which values count; both are computed and written")
    masks: Literal["history", "training"] = Field(
        "history", description="what masked means: all events before the part, or those of training alone, as MMRec has it"
    )
    candidates: Literal["catalogue", "unseen", "published"] = Field(
        "catalogue",
        description="what is ranked: every item; with a split by items, those alone that training never sees; or those that "
        "anybody had seen by the time of the user's first event of the part",
    )
    memory_mb: int = Field(
        256, ge=0, description="scores of a batch held at a time; where they are more, each is computed twice"
    )
    max_users: int | None = Field(None, ge=1, description="rank a fixed random sample of the users; all when null")
    seed: int = Field(0, ge=0, lt=2**32, description="of the sample")

    @field_validator("metrics")
    @classmethod
    def _names_differ(cls, metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
        names = [metric.name for metric in metrics]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} must be named once")
        return metrics

    @property
    def cutoffs(self) -> list[int]:
        """The lengths of the top lists that some metric asks for, ascending."""
        return sorted({metric.k for metric in self.metrics if isinstance(metric, ListMetric)})

    def without_lists(self) -> Self:
        """The same without the metrics that need top lists, which cost more than all the ranks."""
        return self.model_copy(update={"metrics": tuple(m for m in self.metrics if not isinstance(m, ListMetric))})

    def among(self, store: Store) -> NDArray[np.bool_] | None:
        """What is ranked, and may be a target: bool [V + 1], never the padding; None for the whole catalogue."""
        if self.candidates != "unseen":
            return None
        unseen: NDArray[np.bool_] = store.item_counts() == 0
        unseen[0] = False
        return unseen

    @property
    def of_impressions(self) -> tuple[ImpressionMetric, ...]:
        """The metrics of what was shown."""
        return tuple(metric for metric in self.metrics if isinstance(metric, ImpressionMetric))

    def users(self, store: Store, part: Part) -> Int64:
        """The users to evaluate, ascending: all who have a target, or a sample of them that depends on the seed alone."""
        users = store.users_of(part)
        if (among := self.among(store)) is not None:
            before = np.concatenate([[0], np.cumsum(among[store.histories.items])])
            starts, ends = store.span(part, users)
            users = users[before[ends] > before[starts]]
        if self.max_users is None or self.max_users >= len(users):
            return users
        # Only RandomState is promised to give the same numbers in every version of numpy.
        return np.sort(np.random.RandomState(self.seed).permutation(users)[: self.max_users])


@dataclass(frozen=True)
class Result:
    """What a model is worth on one part of a store, and by which protocol that was found."""

    card: dict[str, Any]
    masked: dict[str, float]  # by name of the metric
    kept: dict[str, float]
    targets: Targets  # those of a user in order of rank
    ranks: dict[History, Ranks]
    per_user: dict[History, dict[str, Float64]]  # [U] by name of the metric; a list metric has no such values
    shown: Shown | None = None
    per_impression: dict[str, Float64] = field(default_factory=dict)  # [I] by name of the metric, NaN where it has none

    @property
    def values(self) -> dict[str, float]:
        """The values that count."""
        return self.masked if self.card["history"] == "masked" else self.kept

    def write(self, folder: Path, store: Store) -> None:
        """Write `result.json` and `per_user.parquet`, or `per_user.npz` with store rows for ids where there is no pyarrow."""
        folder.mkdir(parents=True, exist_ok=True)
        result = {"protocol": self.card, "values": {"masked": self.masked, "kept": self.kept}}
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            np.savez_compressed(folder / "per_user.npz", **self._arrays())  # type: ignore[arg-type]
        else:
            temporary = folder / ".per_user.parquet"
            self._write_parquet(temporary, store)
            temporary.replace(folder / "per_user.parquet")
            if self.shown is None:
                (folder / "per_impression.parquet").unlink(missing_ok=True)
            else:
                self._write_impressions(folder / "per_impression.parquet", self.shown, store)
        write_whole(folder / "result.json", json.dumps(result, indent=2, allow_nan=False) + "\n")

    def _write_parquet(self, path: Path, store: Store) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        arrays = self._arrays()
        offsets = pa.array(arrays.pop("offsets"), pa.int64())
        columns: dict[str, Any] = {"user": pa.array(store.user_ids.raw(arrays.pop("user")), pa.large_string())}
        for name, array in arrays.items():
            if name == "target":
                array = pa.array(store.item_ids.raw(array - 1), pa.large_string())
            per_pair = name == "target" or name.startswith("rank_")
            columns[name] = pa.LargeListArray.from_arrays(offsets, array) if per_pair else array
        parquet.write_table(pa.table(columns), path, compression="zstd")

    def _write_impressions(self, path: Path, shown: Shown, store: Store) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        log = store.impressions
        assert log is not None  # of which these are some
        names = store.user_ids.raw(log.users[shown.numbers])
        facts = {"time": log.times[shown.numbers], "shown": np.diff(shown.offsets)}
        table = pa.table({"user": pa.array(names, pa.large_string()), **facts, **self.per_impression})
        parquet.write_table(table, path.with_name(f".{path.name}"), compression="zstd")
        path.with_name(f".{path.name}").replace(path)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """The columns of the per-user table; `target` and ranks are [P] and told apart by `offsets`."""
        targets = self.targets
        arrays: dict[str, NDArray[Any]] = {
            "user": targets.users,
            "history_events": targets.events,
            "offsets": targets.offsets,
            "target": targets.items,
        }
        for history in HISTORIES:
            arrays[f"rank_{history}"] = self.ranks[history].values
            arrays[f"candidates_{history}"] = self.ranks[history].candidates
        for history in HISTORIES:
            arrays |= {f"{name}_{history}": values for name, values in self.per_user[history].items()}
        return arrays


def evaluate(
    scorer: Scorer,
    batches: Iterable[UserBatch],
    store: Store,
    part: Part,
    config: Evaluation,
    device: torch.device,
    max_length: int,
    add_up: Callable[[Sequence[Int64]], None] = lambda arrays: None,
) -> Result:
    """Measure `scorer` on `part`; `batches` show the last `max_length` events before it of `config.users(store, part)`.

    Where several processes take a share of the batches each, `add_up` replaces arrays by their sums over all of them.
    """
    targets = targets_of(store, part, config)
    shown = Shown.of(store, part, targets.users) if config.of_impressions else None
    tally = count(scorer, batches, store, part, targets, config, device, shown)
    add_up(tally.arrays())
    return summarise(tally, targets, store, part, config, max_length, shown)


def targets_of(store: Store, part: Part, config: Evaluation) -> Targets:
    """What there is to rank."""
    users = config.users(store, part)
    targets = Targets.of(store, part, users, config.among(store))
    if config.candidates != "published":
        return targets
    return replace(targets, moments=store.histories.times[store.span(part, users)[0]])


def count(
    scorer: Scorer,
    batches: Iterable[UserBatch],
    store: Store,
    part: Part,
    targets: Targets,
    config: Evaluation,
    device: torch.device,
    shown: Shown | None = None,
) -> Tally:
    """Rank `targets`, and score what was `shown`, for the users in `batches`: all of them, or one process's share."""
    before: Part = part if config.masks == "history" else "validation"  # what comes before that is training
    ranker = Ranker(store, before, targets, config.cutoffs, config.memory_mb * 2**20, device, shown)
    with task(f"Ranking {part}", len(targets.users), "users") as advance:
        for batch in batches:
            ranker.rank(scorer, batch)
            advance(len(batch.users))
    return ranker.tally


def summarise(
    tally: Tally, targets: Targets, store: Store, part: Part, config: Evaluation, max_length: int, shown: Shown | None = None
) -> Result:
    """Values from a complete tally; a UserError if a score was not a number or there is nobody to evaluate."""
    _check(tally, part, config)
    users = np.repeat(np.arange(len(targets.users)), np.diff(targets.offsets))
    order = np.lexsort((tally.greater, users))
    targets = replace(targets, items=targets.items[order])
    ranked = _candidates(targets, store)
    greater, equal, greater_seen, equal_seen = (
        counts[order] for counts in (tally.greater, tally.equal, tally.greater_seen, tally.equal_seen)
    )
    # Masking keeps the order of a user's targets, because it takes none of them away.
    ranks: dict[History, Ranks] = {
        "masked": Ranks.of_counts(targets.offsets, greater - greater_seen, equal - equal_seen, ranked - tally.seen),
        "kept": Ranks.of_counts(targets.offsets, greater, equal, ranked),
    }
    per_impression = _of_impressions(tally, shown, config)
    exposures = _exposures(tally, store, config)
    means: dict[History, dict[str, float]] = {history: {} for history in HISTORIES}
    per_user: dict[History, dict[str, Float64]] = {history: {} for history in HISTORIES}
    for metric in config.metrics:
        for history in HISTORIES:
            if isinstance(metric, ListMetric):
                means[history][metric.name] = metric.value(exposures[history, metric.k])
            elif isinstance(metric, ImpressionMetric):
                means[history][metric.name] = float(np.nanmean(per_impression[metric.name]))
            else:
                values = per_user[history][metric.name] = metric.per_user(ranks[history])
                means[history][metric.name] = float(values.mean())
    card = protocol(store.card, config, part, max_length, len(targets.users))
    if shown is not None:
        told = {"impressions": len(shown.numbers), "users": len(np.unique(shown.users)), "history": SHOWN_AFTER}
        card["shown"] = told
    return Result(card, means["masked"], means["kept"], targets, ranks, per_user, shown, per_impression)


SHOWN_AFTER = "what was before the part; users without any have no part in it"


def _candidates(targets: Targets, store: Store) -> Int64:
    """How many items are ranked for each user: [U]."""
    if targets.moments is None:
        ranked = store.num_items if targets.among is None else int(targets.among.sum())
        return np.full(len(targets.users), ranked, dtype=np.int64)
    first = store.first_seen
    found = np.searchsorted(np.sort(first[1:]), targets.moments, side="right")
    rows = np.repeat(np.arange(len(targets.users)), np.diff(targets.offsets))
    later = first[targets.items] > targets.moments[rows]  # and so are candidates as targets alone
    return (found + np.bincount(rows[later], minlength=len(found))).astype(np.int64)


def _of_impressions(tally: Tally, shown: Shown | None, config: Evaluation) -> dict[str, Float64]:
    """The values of each impression, by the metrics' names: [I]."""
    if shown is None:
        return {}
    if not shown.clicked.any():
        raise UserError(
            "Nobody who takes part clicked anything that was shown after what came before the part: choose another part or "
            "split, or leave out the metrics whose names begin with impression_."
        )
    cuts = [metric.k for metric in config.of_impressions if isinstance(metric, ImpressionNDCG)]
    found = impressions.values(tally.scores, shown.clicked, shown.offsets, cuts)
    values = {metric.name: found[metric.name.removeprefix("impression_")] for metric in config.of_impressions}
    if nowhere := [name for name, of_each in values.items() if np.isnan(of_each).all()]:
        raise UserError(
            f"{', '.join(nowhere)}: whoever takes part clicked everything that was shown, so nothing is ranked. Choose another "
            "part or split, or leave it out of evaluation.metrics."
        )
    return values


def protocol(store_card: Mapping[str, Any], config: Evaluation, part: Part, max_length: int, users: int) -> dict[str, Any]:
    """The protocol card: everything that must agree before two results may stand in one table."""
    sample = None if config.max_users is None else {"max_users": config.max_users, "seed": config.seed}
    masks = {} if config.masks == "history" else {"masks": "the events of the training part alone"}
    return {
        "data": {
            "key": store_card.get("events_key", store_card.get("key")),
            **{name: store_card.get(name) for name in ("counts", "tie_rule", "time_unit")},
        },
        "filters": store_card.get("prepare"),
        "split": store_card.get("split"),
        "part": part,
        "users": users,
        "sample": sample,
        "candidates": CANDIDATES[config.candidates],
        "history": config.history,
        **masks,
        "repeated_targets": "a target that is in the history stays a candidate",
        "targets": "the distinct items of the part; the others of a user stay candidates",
        "ties": TIES,
        "max_length": max_length,
        "request_time": "none",
        "metrics": {metric.name: definition(metric) for metric in config.metrics},
        "turborec": __version__,
    }


CANDIDATES = {
    "catalogue": "the whole catalogue",
    "unseen": "the items that training has no event of",
    "published": "the items that anybody had seen by the time of the user's first event of the part, and the user's targets",
}


def _exposures(tally: Tally, store: Store, config: Evaluation) -> dict[tuple[History, int], Exposure]:
    """How often items were listed, by treatment of the history and length of the lists."""
    if not config.cutoffs:
        return {}
    events = store.item_counts()
    return {
        (history, k): Exposure(tally.listed[place, row], events)
        for place, history in enumerate(HISTORIES)
        for row, k in enumerate(config.cutoffs)
    }


def _check(tally: Tally, part: Part, config: Evaluation) -> None:
    """Refuse a tally that would make a result look right when it is not."""
    if not len(tally.ranked) and config.candidates == "unseen":
        raise UserError(
            f"evaluation.candidates=unseen ranks items that training never sees, but no event in {part} is of an item that "
            "training has not. Hold items out (data.split={kind: item_holdout}), or rank the catalogue."
        )
    if not len(tally.ranked):
        raise UserError(f"Nobody takes part in {part}, so there is nothing to evaluate. Choose another part or another split.")
    if (tally.ranked != 1).any():
        never, often = (tally.ranked == 0).sum(), (tally.ranked > 1).sum()
        raise ValueError(f"Every user must be ranked once, but {never} were left out and {often} were ranked more often")
    if broken := int((tally.broken > 0).sum()):
        raise DivergedError(
            f"The model gave scores that are not numbers (NaN) to {broken:,} of {len(tally.ranked):,} users. Its training "
            "has diverged: lower the learning rate, or clip the gradients, or go back to an earlier checkpoint."
        )
    if (tally.equal < 0).any():
        raise ValueError("The scorer gave the same tile different scores when asked twice, so ranks mean nothing")
