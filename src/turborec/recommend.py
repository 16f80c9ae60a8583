"""The k best items for any users, raw ids in and out, in bounded memory.

Letters: N users asked for at a time, B users of a batch, V items, k places of a list.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from turborec.contract import Scorer
from turborec.data.loader import history_batch
from turborec.data.store import Int64, Store
from turborec.errors import UserError
from turborec.files import table_writer
from turborec.histories import Users
from turborec.progress import task
from turborec.recipe import Config
from turborec.tiles import TopK, cells_by_tile, distinct, hide, tile_edges

if TYPE_CHECKING:
    import pyarrow as pa

TOKENS = 8192
"""Events shown to a model at a time, padding included."""


class Lists(Config):
    """What the lists hold."""

    k: int = Field(10, ge=1, description="items a user gets, fewer where there are fewer candidates")
    seen: Literal["filtered", "kept"] = Field("filtered", description="whether items of the history may be listed")
    at: int | None = Field(None, description="when they are asked for, in the store's unit of time; for models that are told")


@dataclass(frozen=True)
class Recommendations:
    """The lists of some users, best item first."""

    users: list[str]  # raw ids
    items: Int64  # [N, k] ids 1..V, 0 behind the end of a shorter list
    scores: NDArray[np.float64]  # [N, k]
    popular: NDArray[np.bool_]  # [N] no event of the user is known: these are the items with the most training events
    unknown_events: int  # left out of the histories, because the store does not hold their items


@dataclass
class Summary:
    """What was written."""

    users: int = 0
    rows: int = 0
    popular_users: int = 0
    popular_examples: list[str] = field(default_factory=list)  # the first of them
    unknown_events: int = 0


def candidates_of(store: Store, ids: Sequence[str]) -> tuple[Int64, list[str]]:
    """The items with these raw ids, and the ids that the store does not hold; a UserError where it holds none."""
    rows = store.item_ids.find(ids)
    unknown = [text for text, row in zip(ids, rows, strict=True) if row < 0]
    if len(unknown) == len(ids):
        example = store.item_ids.raw([0])[0]
        raise UserError(f"None of the {len(ids):,} candidates is an item of the training data; they look like {example!r}.")
    return np.unique(rows[rows >= 0]) + 1, unknown


def recommend(
    scorer: Scorer,
    users: Iterable[Users],
    store: Store,
    lists: Lists,
    max_length: int,
    device: torch.device,
    candidates: Int64 | None = None,
) -> Iterator[Recommendations]:
    """The best of all items, or of `candidates`, for users as they come; the model sees their last `max_length` events.

    Equal scores go by item, ascending. Whoever has no known event gets the items with the most training events, scored by
    how many those are. A UserError if a score is not a number.
    """
    lists = lists.model_copy(update={"k": min(lists.k, store.num_items)})
    allowed = torch.full((store.num_items + 1,), candidates is None, device=device)
    if candidates is not None:
        allowed[torch.from_numpy(candidates).to(device)] = True
    events = store.item_counts()
    counts = torch.from_numpy(events).to(device, torch.float64)
    popular = _top(lambda lo, hi: counts[None, lo:hi], 1, _NOTHING, lists.k, allowed)
    for some in users:
        shown = np.asarray([min(len(items), max_length) for items in some.items])
        items, scores = (tensor.cpu().numpy().repeat(len(shown), axis=0) for tensor in (popular.items, popular.scores))
        for rows in _batches(shown):
            top = _list(scorer, some, rows, lists, max_length, allowed)
            items[rows], scores[rows] = top.items.cpu().numpy(), top.scores.cpu().numpy()
        yield Recommendations(some.ids, items, scores, shown == 0, some.unknown_events)


def write(recommendations: Iterable[Recommendations], path: Path, store: Store, names: Sequence[str] | None = None) -> Summary:
    """Write user, rank, item, score and reason (`model` or `popular`) to .parquet, .csv, .tsv or .jsonl, as they come.

    `names` [V], where items have any, are a column `name` after the item.
    """
    summary = Summary()
    with table_writer(path, _schema(names is not None)) as add, task("Recommending", unit="users") as advance:
        for some in recommendations:
            table = _table(some, store, names)
            add(table)
            advance(len(some.users))
            summary.users += len(some.users)
            summary.rows += len(table)
            summary.popular_users += int(some.popular.sum())
            named = [user for user, popular in zip(some.users, some.popular, strict=True) if popular]
            summary.popular_examples += named[: 3 - len(summary.popular_examples)]
            summary.unknown_events += some.unknown_events
    return summary


_NOTHING = np.zeros(0, dtype=np.int64)


def _batches(shown: NDArray[np.int64]) -> Iterator[Int64]:
    """The rows that show something, like lengths together, as many at a time as `TOKENS` allows."""
    order = np.argsort(-shown, kind="stable")[: np.count_nonzero(shown)]
    while len(order):
        size = max(1, TOKENS // int(shown[order[0]]))
        yield order[:size]
        order = order[size:]


@torch.no_grad()
def _list(scorer: Scorer, some: Users, rows: Int64, lists: Lists, max_length: int, allowed: Tensor) -> TopK:
    """The lists of the users at `rows`, all of whom have a history."""
    items, times = [some.items[row] for row in rows], [some.times[row] for row in rows]
    batch = replace(history_batch(items, times, max_length), users=torch.from_numpy(some.rows[rows]))
    if lists.at is not None:
        batch = replace(batch, request=torch.full_like(batch.lengths, lists.at))
    state = scorer.users(batch.to(allowed.device))
    hidden = _NOTHING
    if lists.seen == "filtered":
        owner = np.repeat(np.arange(len(rows)), [len(history) for history in items])
        hidden = distinct(np.concatenate(items).astype(np.int64) * len(rows) + owner)
    return _top(partial(scorer.score, state), len(rows), hidden, lists.k, allowed)


def _top(score: Callable[[int, int], Tensor], users: int, hidden: Int64, k: int, allowed: Tensor) -> TopK:
    """The best of the items that are `allowed` [V + 1], for `users` users; `hidden` holds the cells item * users + row."""
    top = TopK(users, k, allowed.device)
    edges = tile_edges(users, len(allowed) - 1, allowed.device)
    for (lo, hi), cells in zip(pairwise(edges), cells_by_tile(hidden, users, edges, allowed.device), strict=True):
        if allowed[lo:hi].any():
            tile = score(lo, hi)
            if tile.amax(1).isnan().any():
                raise UserError("The model gave scores that are not numbers (NaN). Take an earlier checkpoint or train again.")
            top.offer(hide(tile, cells).masked_fill(~allowed[lo:hi], -math.inf), lo)
    return top


def _table(some: Recommendations, store: Store, names: Sequence[str] | None) -> "pa.Table":
    """One row for every listed item."""
    import pyarrow as pa

    rows, places = np.nonzero(some.items)
    items, which = np.unique(some.items[rows, places], return_inverse=True)
    named = {} if names is None else {"name": pa.array([names[i - 1] for i in items], pa.string()).take(pa.array(which))}
    return pa.table(
        {
            "user": pa.array(some.users, pa.string()).take(pa.array(rows)),
            "rank": pa.array(places + 1, pa.int32()),
            "item": pa.array(store.item_ids.raw(items - 1), pa.string()).take(pa.array(which)),
            **named,
            "score": some.scores[rows, places],
            "reason": pa.array(["model", "popular"]).take(pa.array(some.popular[rows].astype(np.int8))),
        }
    )


def _schema(named: bool) -> "pa.Schema":
    import pyarrow as pa

    kinds = {"user": pa.string(), "rank": pa.int32(), "item": pa.string()} | ({"name": pa.string()} if named else {})
    return pa.schema({**kinds, "score": pa.float64(), "reason": pa.string()})
