"""What carries out the SQL of `read` and `clean`: the few things it is asked for, and DuckDB, which does them by default.

The SQL is one text for every engine. It quotes names by `"`, has no backslash in its texts, says where nulls sort, and
uses some functions that an engine defines where it lacks them: `regexp_full_match`, `isfinite`, `divide` (of whole
numbers) and `instant_us`, the microseconds since 1970 at an ISO 8601 time, of UTC where it names no zone, null where it
is not on the calendar.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from turborec.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection as Connection

BATCH = 2**17
"""Rows that are handed over together."""
THREAD_MB = 250
"""Memory that DuckDB should have for each of its threads."""


@dataclass(frozen=True)
class File:
    """A Parquet file that an engine reads by itself; `base` comes before the number of a row to make its position."""

    path: Path
    columns: tuple[str, ...]
    base: int
    constants: Mapping[str, str]  # further columns, and the text that all rows have in each


@dataclass(frozen=True)
class Part:
    """Rows to be staged and the query that checks and casts them, to which they are the table `run`."""

    query: str
    rows: "pa.Table | File"


class Engine(Protocol):
    """Runs SQL in bounded memory. A table is computed when it is made, a view when it is read."""

    def stage(self, name: str, columns: str, parts: Iterable[Part]) -> None:
        """Make the table `name` of these `columns` (SQL) from parts; a UserError where the SQL of one does not run."""
        ...

    def reads(self, path: Path, columns: Sequence[str]) -> bool:
        """Whether the engine itself reads these columns of a columnar file, as exactly as `rows` does."""
        ...

    def table(self, name: str, query: str) -> None:
        """Make the table `name` of what a query gives; it replaces one of that name, which the query may read."""
        ...

    def view(self, name: str, query: str) -> None:
        """Give a query a name."""
        ...

    def ranks(self, name: str, query: str, by: str, column: str, first: int) -> None:
        """Make the table `name` of a query's only column `by`, all distinct, and its rank, counted from `first`."""
        ...

    def register(self, name: str, table: "pa.Table") -> None:
        """Make an Arrow table known as `name`."""
        ...

    def drop(self, *names: str) -> None:
        """Give up tables and the room they take."""
        ...

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """The few rows that a query gives."""
        ...

    def batches(self, query: str) -> "Iterator[pa.RecordBatch]":
        """The many rows that a query gives, in its order and in bounded memory."""
        ...

    def close(self) -> None:
        """Give up everything."""
        ...


def number(engine: Engine, query: str) -> int:
    """The single number a query gives."""
    return int(engine.rows(query)[0][0])


def mistaken(reason: object) -> UserError:
    """What to say where the SQL that a source states does not run."""
    return UserError(f"The SQL stated for the columns does not run: {reason}")


class DuckDB:
    """In this process, on one machine."""

    def __init__(self, con: "Connection") -> None:
        """Take over a connection."""
        self._con = con
        con.execute("SET TimeZone = 'UTC'")
        con.execute("SET enable_progress_bar = false")
        # A zone counts, and UTC stands in for none because it is the session's.
        con.execute("CREATE OR REPLACE TEMP MACRO instant_us(x) AS epoch_us(TRY_CAST(x AS TIMESTAMPTZ))")

    def stage(self, name: str, columns: str, parts: Iterable[Part]) -> None:
        """Insert part after part."""
        import duckdb

        self._con.execute(f"CREATE TABLE {name} ({columns})")
        for part in parts:
            self._con.register("run", part.rows)
            try:
                self._con.execute(f"INSERT INTO {name} {part.query}")
            except (duckdb.ProgrammingError, duckdb.DataError) as error:
                raise mistaken(error) from error
            finally:
                self._con.unregister("run")

    def reads(self, path: Path, columns: Sequence[str]) -> bool:
        """Never: it takes the rows of `rows` as fast as they come."""
        return False

    def table(self, name: str, query: str) -> None:
        """As the engine says."""
        self._con.execute(f"CREATE OR REPLACE TABLE {name} AS {query}")

    def view(self, name: str, query: str) -> None:
        """As the engine says."""
        self._con.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")

    def ranks(self, name: str, query: str, by: str, column: str, first: int) -> None:
        """By a window over all rows."""
        rank = f"CAST(row_number() OVER (ORDER BY {by}) + {first - 1} AS INTEGER)"
        self.table(name, f"SELECT {by}, {rank} AS {column} FROM ({query})")

    def register(self, name: str, table: "pa.Table") -> None:
        """Without a copy."""
        self._con.register(name, table)

    def drop(self, *names: str) -> None:
        """As the engine says."""
        for name in names:
            self._con.execute(f"DROP TABLE IF EXISTS {name}")

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """As the engine says."""
        return self._con.execute(query).fetchall()

    def batches(self, query: str) -> "Iterator[pa.RecordBatch]":
        """As the engine says."""
        yield from self._con.sql(query).to_arrow_reader(BATCH)

    def close(self) -> None:
        """Close the connection."""
        self._con.close()


def duckdb_in(work: Path, memory_mb: int) -> DuckDB:
    """DuckDB in this much memory, with its tables and what it spills in the folder `work`."""
    import duckdb

    if re.search(r"[?\\]", str(work)):
        raise UserError(f"DuckDB cannot keep its files in {work}, whose name has a question mark or a backslash: name another.")
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory_mb}MB",
        "temp_directory": str(work / "spill"),
        "threads": max(1, min(os.cpu_count() or 1, memory_mb // THREAD_MB)),
        "preserve_insertion_order": False,  # every row carries its position
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    return DuckDB(duckdb.connect(str(work / "events.duckdb"), config=settings))
