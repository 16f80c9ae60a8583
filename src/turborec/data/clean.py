"""Staged events -> clean, ordered, densely numbered ones: plain SQL on integers, in the engine's bounded memory.

Raw ids are numbered by their rank in UTF-8 byte order, before and again after events are dropped, so that neither the
order of the rows nor the engine matters. `moment` is what orders a user's events: `order` where it is given, else the
time, else the position in the files.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from turborec.data.engine import Engine, number
from turborec.data.read import quoted
from turborec.data.schema import BY_PLACE, UNKNOWN_TIME
from turborec.progress import task

Duplicates = Literal["keep", "drop_exact", "first", "last"]

_SHUFFLED = "in an order of items drawn for each user"
TIE_RULES = {
    "order": f"by the order column, ties by time, then {_SHUFFLED}",
    "time": f"by time, ties {_SHUFFLED}; histories with an unknown time by place in the files",
    "position": BY_PLACE,
}
"""What orders a user's events, by the column that leads."""


def number_ids(con: Engine, described: bool = False) -> None:
    """`raw_users` and `raw_items`: every raw id of a sound row with its rank; with `described` of rows about items too."""
    sound = "SELECT {0} AS id FROM {1} WHERE _reason IS NULL"
    users, items = (sound.format(f'"{column}"', "staged_events") for column in ("user", "item"))
    if described:
        items += f" UNION ALL {sound.format('item', 'staged_items')}"
    for raw, ids in (("raw_users", users), ("raw_items", items)):
        con.ranks(raw, f"SELECT DISTINCT id FROM ({ids})", "id", "rank", 1)


def locate(con: Engine, columns: Sequence[str], labelled: bool, conditions: Sequence[str], values: bool = False) -> None:
    """`located`: the staged events for which all `conditions` hold, on integers, with moment and, where asked for, value."""
    time = "time" if "time" in columns else "CAST(NULL AS BIGINT)"
    label = "label" if labelled else "CAST(0 AS TINYINT)"
    given = '"order"' if "order" in columns else "position"
    query = f"""
        SELECT users.rank AS u, items.rank AS i, {time} AS time, {label} AS label, {given} AS place{_also(values)}
        FROM staged_events
        JOIN raw_users AS users ON users.id = staged_events."user"
        JOIN raw_items AS items ON items.id = staged_events.item
        WHERE {" AND ".join(conditions)}"""
    con.table("chosen", query)
    timed = "time" in columns and "order" not in columns
    moment = "CASE WHEN u IN (SELECT u FROM chosen WHERE time IS NULL) THEN place ELSE time END" if timed else "place"
    con.view("located", f"SELECT u, i, time, label, {moment} AS moment{_also(values)} FROM chosen")


def _also(values: bool) -> str:
    """The column of values in a list of others, where it is kept."""
    return ", value" if values else ""


def drop_duplicates(con: Engine, policy: Duplicates, values: bool = False) -> None:
    """`events`: `located` without its duplicates.

    `drop_exact` keeps the first of the repeats of (user, item, time); an event of unknown time repeats another only
    where the moment does too. `first` and `last` keep one event of each (user, item). Of events that differ in nothing but
    their value, the least stays, and the greatest with `last`.
    """
    same = "u, i, time, CASE WHEN time IS NULL THEN moment END" if policy == "drop_exact" else "u, i"
    way = "DESC" if policy == "last" else "ASC"
    order = f"label {way}, moment {way}, time {way} NULLS LAST" + (f", value {way} NULLS LAST" if values else "")
    numbered = f"SELECT *, row_number() OVER (PARTITION BY {same} ORDER BY {order}) AS place FROM located"
    single = f"SELECT u, i, time, label, moment{_also(values)} FROM ({numbered}) WHERE place = 1"
    query = "SELECT * FROM located" if policy == "keep" else single
    con.table("events", query)
    con.drop("chosen")


def keep_core(con: Engine, user_events: int, item_events: int, values: bool = False) -> None:
    """`users` and `items`: the largest sets in which each user has `user_events` events with the items, and each item
    `item_events` events with the users; with their dense rows, users from 0 and items from 1. With 0 for items these are all
    that have events, and what is described.
    """
    described = "SELECT item FROM staged_items WHERE _reason IS NULL"
    also = f" UNION SELECT rank AS i FROM raw_items WHERE id IN ({described})" if item_events == 0 else ""
    con.table("core_items", f"SELECT DISTINCT i FROM events{also}")
    before: tuple[int, ...] = ()
    with task("Dropping rare users and items", unit="rounds") as advance:
        while True:
            for kept, u, others, i, least in (
                ("core_users", "u", "core_items", "i", user_events),
                ("core_items", "i", "core_users", "u", item_events),
            ):
                if least == 0:
                    continue
                known = f"{i} IN (SELECT {i} FROM {others})"
                con.table(kept, f"SELECT {u} FROM events WHERE {known} GROUP BY {u} HAVING count(*) >= {least}")
            advance(1)
            after = tuple(number(con, f"SELECT count(*) FROM {name}") for name in ("core_users", "core_items"))
            if after == before:
                break
            before = after
    for name, numbers, column, base in (("users", "core_users", "u", 0), ("items", "core_items", "i", 1)):
        con.ranks(name, f"SELECT {column} FROM {numbers}", column, "row", base)
    query = f"""
        SELECT users.row AS u, items.row AS i, time, label, moment{_also(values)}
        FROM events JOIN users ON users.u = events.u JOIN items ON items.i = events.i"""
    con.table("core", query)
    con.drop("events")


def label_items(con: Engine, labels: NDArray[np.uint8], values: bool = False) -> None:
    """Give every event the label of its item: [V], item i at i - 1."""
    import pyarrow as pa

    table = {"i": np.arange(1, len(labels) + 1, dtype=np.int32), "label": labels.astype(np.int8)}
    con.register("labels", pa.table(table))
    columns = f"u, core.i, time, labels.label, moment{_also(values)}"
    con.table("core", f"SELECT {columns} FROM core JOIN labels ON labels.i = core.i")


LENGTHS = "SELECT count(*) AS length FROM core GROUP BY u ORDER BY u"
"""The length of each user's history, by row."""

PRIME = 2**31 - 1
USER_FACTOR, ITEM_FACTOR = 1_327_217_885, 820_265_763


# Ties must not be broken by id: where half of all targets share their day with the event before, "the next item has a
# greater id" is a rule that a model learns and that holds in the test; it raised HR@10 by a fifth. Fifth powers modulo
# this prime are a permutation, so that no two items tie, and leave nothing to learn of the numbers they come from.
def events_query(values: bool) -> str:
    """Items, times, labels and, with `values`, values in the order of the store; NaN for what nobody knows."""
    value = ", coalesce(value, CAST('NaN' AS DOUBLE)) AS value" if values else ""
    return f"""
        SELECT i AS item, coalesce(time, {UNKNOWN_TIME}) AS time, label{value}
        FROM (SELECT *, (CAST(u AS BIGINT) * {USER_FACTOR} + CAST(i AS BIGINT) * {ITEM_FACTOR}) % {PRIME} AS x FROM core)
        ORDER BY u, label, moment, time NULLS FIRST, (x * x % {PRIME}) * (x * x % {PRIME}) % {PRIME} * x % {PRIME}
            {", value NULLS LAST" if values else ""}"""


USER_IDS = "SELECT id FROM users JOIN raw_users ON rank = u ORDER BY row"
ITEM_IDS = "SELECT id FROM items JOIN raw_items ON rank = i ORDER BY row"
"""Raw ids by row."""


SHOWN = f"""
    SELECT users.row AS u, position, coalesce(time, {UNKNOWN_TIME}) AS time, items.row AS item, clicked FROM staged_impressions
    JOIN raw_users ON raw_users.id = staged_impressions."user" JOIN users ON users.u = raw_users.rank
    JOIN raw_items ON raw_items.id = staged_impressions.item JOIN items ON items.i = raw_items.rank
    WHERE _reason IS NULL"""
"""What was shown to users that are kept, and is among the items that are; an impression is what shares a position."""


def attributes_query(names: Sequence[str]) -> str:
    """The items' attributes by row, from the first sound row that tells of each item; null where none does."""
    columns = ", ".join(f"told.{quoted(name)}" for name in names)
    return f"""
        SELECT id AS item{", " * bool(names)}{columns} FROM items JOIN raw_items ON rank = i LEFT JOIN (
            SELECT *, row_number() OVER (PARTITION BY item ORDER BY position) AS _place
            FROM staged_items WHERE _reason IS NULL) AS told
        ON told.item = id AND told._place = 1 ORDER BY row"""
