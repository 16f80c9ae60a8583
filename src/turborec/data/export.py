"""A store's events written out again with their raw ids, in bounded memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from turborec.data.schema import UNKNOWN_TIME
from turborec.data.store import PART_BITS, Int64, Store
from turborec.files import table_writer
from turborec.progress import task

if TYPE_CHECKING:
    import pyarrow as pa

USERS_AT_A_TIME = 4096


def export(store: Store, out: Path) -> int:
    """Write user, item, time and part of every event to `out` (.parquet, .csv, .tsv or .jsonl); how many there were."""
    with table_writer(out, _schema()) as add, task("Exporting", store.num_users, "users") as advance:
        for users in blocks_of_users(store):
            add(rows_of(store, users))
            advance(len(users))
    return len(store.histories.items)


def _schema() -> "pa.Schema":
    import pyarrow as pa

    return pa.schema({"user": pa.string(), "item": pa.string(), "time": pa.int64(), "part": pa.string()})


def blocks_of_users(store: Store) -> Iterator[Int64]:
    """All users, some thousand at a time."""
    for first in range(0, store.num_users, USERS_AT_A_TIME):
        yield np.arange(first, min(first + USERS_AT_A_TIME, store.num_users))


def rows_of(store: Store, users: Int64) -> "pa.Table":
    """User, item, time and part (train, validation, test or history) of the events of consecutive users."""
    import pyarrow as pa

    offsets = store.histories.offsets
    begin, end = int(offsets[users[0]]), int(offsets[users[-1] + 1])
    row = np.repeat(users, np.diff(offsets[users[0] : users[-1] + 2]))
    place = np.arange(begin, end)
    times = store.histories.times[begin:end]
    label = np.where(place < store.cuts[row, 0], "train", np.where(place < store.cuts[row, 1], "validation", "test"))
    # History that is shown to an evaluation but never trained on (held-out users) belongs to no part.
    label = np.where((label == "train") & (store.parts[row] & PART_BITS["train"] == 0), "history", label)
    raw_users = dict(zip(users.tolist(), store.user_ids.raw(users), strict=True))
    items = store.histories.items[begin:end]
    distinct = np.unique(items)
    raw_items = dict(zip(distinct.tolist(), store.item_ids.raw(distinct - 1), strict=True))
    columns = [
        [raw_users[u] for u in row.tolist()],
        [raw_items[i] for i in items.tolist()],
        pa.array(times, mask=times == UNKNOWN_TIME),
        label.tolist(),
    ]
    return pa.table(columns, schema=_schema())
