"""What becomes of the rows of a raw file, for tests of the readers."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from turborec.data.engine import DuckDB
from turborec.data.read import Intake, bad_records, event_checks, ingest
from turborec.data.schema import Layout, RawTable, Text, TimeFormat

TSV = Text("\t", ("user", "item", "time"))


class Taken(NamedTuple):
    """What was staged of a file: its sound rows, where each of the others stands and why, and the counts."""

    rows: list[tuple[Any, ...]]
    bad: list[tuple[int, str]]
    texts: list[str]
    intake: Intake


def take(
    path: Path,
    content: bytes | pa.Table | None,
    layout: Layout = TSV,
    select: Mapping[str, str] | None = None,
    time: TimeFormat = "seconds",
    **more: Any,
) -> Taken:
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        pq.write_table(content, path)
    table = RawTable((path,), layout, select or {"user": "user", "item": "item", "time": "time"}, **more)
    return staged(table, event_checks(time), 1.0)


@cache
def engine() -> DuckDB:
    return DuckDB(duckdb.connect(config={"threads": 1}))


def staged(table: RawTable, checks: Any, bad_rows: float) -> Taken:
    con = engine()
    con.drop("staged")
    intake = ingest(con, "staged", table, checks, bad_rows, "events")
    columns = "* EXCLUDE (position, _reason, _text)"
    sound = con.rows(f"SELECT {columns} FROM staged WHERE _reason IS NULL ORDER BY position")
    bad = list(bad_records(con, "staged", table))
    return Taken(sound, [(line, reason) for _, line, reason, _ in bad], [text for *_, text in bad], intake)
