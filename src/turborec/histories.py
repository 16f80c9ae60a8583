"""The users who ask for recommendations, with their histories: from a store or from a file, a part of them at a time."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from turborec.data.schema import UNKNOWN_TIME, Columnar, RawTable, Text
from turborec.data.store import Int64, Store
from turborec.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

USERS_AT_A_TIME = 4096
ROWS_AT_A_TIME = 2**17
MEMORY_MB = 1000
"""What the engine that sorts a history file may use; beyond it, it spills to disk."""


@dataclass(frozen=True)
class Users:
    """Some users and the events that turborec knows of them, oldest first."""

    ids: list[str]
    rows: Int64  # store rows, -1 for users the store does not hold
    items: list[NDArray[Any]]  # ids 1..V
    times: list[Int64]
    unknown_events: int = 0  # left out, because the store does not hold their items


def stored(store: Store, ids: Iterable[str] | None = None) -> Iterator[Users]:
    """The users with these raw ids (all when None) and their whole stored histories; unknown users have empty ones."""
    if ids is None:
        ids = chain.from_iterable(
            store.user_ids.raw(range(first, min(first + USERS_AT_A_TIME, store.num_users)))
            for first in range(0, store.num_users, USERS_AT_A_TIME)
        )
    remaining = iter(ids)
    while some := list(islice(remaining, USERS_AT_A_TIME)):
        rows = store.user_ids.find(some)
        yield Users(some, rows, *_stored_events(store, rows))


def from_file(store: Store, path: Path, ids: Iterable[str] | None = None) -> Iterator[Users]:
    """The users with these raw ids, their histories replaced by the events that the file at `path` holds of them.

    The file (.csv or .tsv with a header, .parquet or .arrow) has the columns that the store was made from, or `user`,
    `item` and perhaps `time`, which may be seconds, milliseconds or dates; without times its rows are in order of time.
    Without `ids` its own users are taken, as they first appear. A UserError names the rows that cannot be read.
    """
    import duckdb
    import pyarrow as pa

    from turborec.data.engine import DuckDB
    from turborec.data.read import event_checks, ingest, time_format

    table = RawTable((path,), _layout(path), _columns(store, path))
    written = time_format(table)
    ticks = _TICKS[store.card.get("time_unit") or "seconds"]
    time = f"time * {ticks} // {_TICKS[written]}" if "time" in table.select else "NULL"
    with TemporaryDirectory() as spill, closing(duckdb.connect(":memory:")) as con:
        con.execute(f"SET memory_limit = '{MEMORY_MB}MB'")
        con.execute("SET temp_directory = $1", [spill])
        ingest(DuckDB(con), "history", table, event_checks(written), 0.0, path.name)
        items = pa.array(store.item_ids.raw(range(store.num_items)), pa.string())
        con.register("known", pa.table({"item": items, "id": np.arange(1, store.num_items + 1)}))
        wanted = 'SELECT "user", min(position) AS place FROM history GROUP BY "user"'
        if ids is not None:
            asked = pa.array(list(ids), pa.string())
            con.register("asked", pa.table({"user": asked, "place": np.arange(len(asked))}))
            wanted = 'SELECT "user", place FROM asked'
        reader = con.sql(
            f"""SELECT place, "user", position IS NOT NULL AS listed, coalesce(id, 0) AS id,
                coalesce({time}, {UNKNOWN_TIME}) AS time
                FROM ({wanted}) LEFT JOIN history USING ("user") LEFT JOIN known USING (item)
                ORDER BY place, time, position"""
        ).to_arrow_reader(ROWS_AT_A_TIME)
        for table in _whole_users(reader):
            yield _users(store, table)


def _columns(store: Store, path: Path) -> dict[str, str]:
    """Our names of the file's columns to its own: those the store was made from, or else ours."""
    from turborec.data.rows import column_names

    known = {name: column for name, column in store.card.get("columns", {}).items() if name in _PLAIN}
    names = column_names(path, _layout(path), ())
    chosen = known if {known.get("user"), known.get("item")} <= set(names) else _PLAIN
    column_names(path, _layout(path), (chosen["user"], chosen["item"]))
    return {name: column for name, column in chosen.items() if column in names}


_PLAIN = {name: name for name in ("user", "item", "time")}
_TICKS = {"seconds": 1, "iso": 1, "milliseconds": 1000}
"""Of each way to write a time in a second; a store without times takes seconds."""


def read_ids(path: Path, store: Store, what: Literal["user", "item"]) -> Iterator[str]:
    """Raw ids from a file: a column of a table (.csv, .tsv, .parquet, .arrow), or the lines of any other text.

    The column is called as it was where the store comes from, or else `user` or `item`.
    """
    from turborec.data.rows import column_names, runs

    if _suffix(path) in _LAYOUTS:
        layout = _layout(path)
        own = store.card.get("columns", {}).get(what)
        column = own if own in column_names(path, layout, ()) else what
        for run in runs(path, layout, column_names(path, layout, [column]), [column]):
            if run.faults:
                raise UserError(f"{path}, line {run.faults[0].line}: {run.faults[0].reason}.")
            yield from filter(None, run.table[column].to_pylist())
        return
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from (line.rstrip("\r\n") for line in file if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read ids from {path}: {error}.") from error


_LAYOUTS: dict[str, Text | Columnar] = {
    ".csv": Text(",", header=True, quote='"'),
    ".tsv": Text("\t", header=True),
    ".parquet": Columnar(),
    ".arrow": Columnar(),
}


def _suffix(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _layout(path: Path) -> Text | Columnar:
    if _suffix(path) not in _LAYOUTS:
        raise UserError(f"Expected a file ending in {', '.join(_LAYOUTS)}, got {path}.")
    return _LAYOUTS[_suffix(path)]


def _stored_events(store: Store, rows: Int64) -> tuple[list[NDArray[Any]], list[Int64]]:
    """The stored items and times of the users at these rows, none for row -1."""
    histories = store.histories
    starts, ends = histories.offsets[rows], np.where(rows < 0, histories.offsets[rows], histories.offsets[rows + 1])
    spans = [slice(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return [histories.items[span] for span in spans], [histories.times[span] for span in spans]


def _whole_users(reader: "pa.RecordBatchReader") -> "Iterator[pa.Table]":
    """The rows of a reader that are sorted by `place`, cut so that no user is in two tables."""
    import pyarrow as pa

    rest = reader.schema.empty_table()
    for batch in reader:
        rest = pa.concat_tables([rest, pa.Table.from_batches([batch])])
        place = rest["place"].to_numpy()
        complete = int(np.searchsorted(place, place[-1]))
        if complete:
            yield rest.slice(0, complete)
            rest = rest.slice(complete)
    if len(rest):
        yield rest


def _users(store: Store, table: "pa.Table") -> Users:
    """Users from their rows: place, user, whether the row is an event, item id (0: unknown), time."""
    place, listed, items, times = (table[name].to_numpy() for name in ("place", "listed", "id", "time"))
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    ids = table["user"].take(starts).to_pylist()
    rows = store.user_ids.find(ids)
    known = items > 0
    edges = np.cumsum(np.add.reduceat(known.astype(np.int64), starts))[:-1]
    histories, clocks = np.split(items[known], edges), np.split(times[known], edges)
    # Whoever the file says nothing about keeps the stored history.
    absent = np.flatnonzero(~listed[starts])
    for user, stored_items, stored_times in zip(absent, *_stored_events(store, rows[absent]), strict=True):
        histories[user], clocks[user] = stored_items, stored_times
    return Users(ids, rows, histories, clocks, int((listed & ~known).sum()))
