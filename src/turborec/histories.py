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

from turborec.data.schema import TICKS, UNKNOWN_TIME, Columnar, RawTable, Text
from turborec.data.store import Int64, Store
from turborec.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

USERS_AT_A_TIME = 4096
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
    `item` and perhaps `time`, which may be seconds, milliseconds or dates. What the store's rules keep of kinds, values and
    duplicates is kept here, and what orders its histories orders these: `order`, else the time, else the place in the file.
    Without `ids` the file's own users are taken, as they first appear. A UserError names the rows that cannot be read.
    """
    import pyarrow as pa

    from turborec.data.engine import duckdb_in
    from turborec.data.read import event_checks, ingest, time_format

    table = RawTable((path,), _layout(path), _columns(store, path))
    written = time_format(table)
    with TemporaryDirectory() as spill, closing(duckdb_in(Path(spill), MEMORY_MB)) as con:
        ingest(con, "history", table, event_checks(written), 0.0, path.name)
        con.table("kept", _kept(store, table))
        items = pa.array(store.item_ids.raw(range(store.num_items)), pa.string())
        con.register("known_items", pa.table({"item": items, "id": np.arange(1, store.num_items + 1)}))
        wanted = 'SELECT "user", min(position) AS place FROM history GROUP BY "user"'
        if ids is not None:
            asked = pa.array(list(ids), pa.string())
            con.register("asked", pa.table({"user": asked, "place": np.arange(len(asked))}))
            wanted = 'SELECT "user", place FROM asked'
        ticks = store.ticks
        for rows in _whole_users(
            con.batches(f"""
                SELECT place, "user", position IS NOT NULL AS listed, coalesce(id, 0) AS id,
                    coalesce(time * {ticks} // {TICKS[written]}, {UNKNOWN_TIME}) AS time
                FROM ({wanted}) LEFT JOIN kept USING ("user") LEFT JOIN known_items USING (item)
                ORDER BY place, moment, time, position""")
        ):
            yield _users(store, rows)


def _columns(store: Store, path: Path) -> dict[str, str]:
    """Our names of the file's columns to its own: what the store was made from was called, or else as we call it."""
    from turborec.data.rows import column_names

    own = store.card.get("columns", {})
    names = column_names(path, _layout(path), ())
    chosen = {name: column for name, column in own.items() if column in names and name in _READ}
    chosen |= {name: name for name in ("user", "item", "time") if name not in chosen and name in names}
    needed = [chosen.get(name, own.get(name, name)) for name in ("user", "item")]
    column_names(path, _layout(path), needed)
    return {name: chosen[name] for name in _READ if name in chosen}


_READ = ("user", "item", "time", "order", "kind", "value")


def _kept(store: Store, table: RawTable) -> str:
    """SQL for the events that the store's rules keep, with the moment that orders a user's."""
    from turborec.data.read import literal

    rules = store.card.get("prepare", {})
    conditions = ["_reason IS NULL"]
    if rules.get("kinds") and "kind" in table.select:
        conditions.append(f"kind IN ({', '.join(map(literal, rules['kinds']))})")
    if rules.get("min_value") is not None and "value" in table.select:
        conditions.append(f"value >= {rules['min_value']!r}")
    time = "time" if "time" in table.select else "CAST(NULL AS BIGINT)"
    events = f"""SELECT position, "user", item, {time} AS time, {'"order"' if "order" in table.select else "NULL"} AS given
        FROM history WHERE {" AND ".join(conditions)}"""
    timed = f"""SELECT position, "user", item, time, coalesce(given,
        CASE WHEN count(time) OVER (PARTITION BY "user") = count(*) OVER (PARTITION BY "user") THEN time ELSE position END
        ) AS moment FROM ({events})"""
    policy = rules.get("duplicates", "keep")
    if policy == "keep":
        return timed
    same = '"user", item' + (", time, CASE WHEN time IS NULL THEN moment END" if policy == "drop_exact" else "")
    way = "DESC" if policy == "last" else "ASC"
    return f"""SELECT * FROM ({timed})
        QUALIFY row_number() OVER (PARTITION BY {same} ORDER BY moment {way}, position {way}) = 1"""


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
    return path.with_suffix("").suffix if path.suffix in (".gz", ".bz2") else path.suffix


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


def _whole_users(batches: "Iterator[pa.RecordBatch]") -> "Iterator[pa.Table]":
    """Rows that are sorted by `place`, cut so that no user is in two tables."""
    import pyarrow as pa

    rest = None
    for batch in batches:
        more = pa.Table.from_batches([batch])
        rest = more if rest is None else pa.concat_tables([rest, more])
        place = rest["place"].to_numpy()
        complete = int(np.searchsorted(place, place[-1]))
        if complete:
            yield rest.slice(0, complete)
            rest = rest.slice(complete)
    if rest:
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
