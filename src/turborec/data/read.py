"""Raw tables -> typed staging tables in the engine: every value is checked as text, then cast; bad rows are set aside.

A missing time is unknown, one before 1970 refused. The position of a row is its file times `FILE_STEP` plus its line: it
orders rows and tells where each one came from.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from turborec.data.chunks import LINE, Run
from turborec.data.rows import column_names, runs
from turborec.data.schema import Lookup, RawTable, Text, TimeFormat
from turborec.errors import UserError, closest
from turborec.progress import task

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection

FILE_STEP = 2**40
SHOWN_ROWS = 5
SHOWN_CHARACTERS = 200
LOOKED_AT = 1000
"""Rows that decide how times are written."""
YEAR_2200 = 7_258_118_400
"""Seconds at its beginning; today's milliseconds are far above it."""

LABELS = ("train", "valid", "test")
"""The values of a label column; staged as their places here."""

BadRow = tuple[str, int, str, str]
"""File, line, what is wrong, the beginning of the row."""


@dataclass(frozen=True)
class Check:
    """How the text `{x}` of a column is checked and cast; the first condition that holds refuses the row."""

    type: str
    value: str
    refused: tuple[tuple[str, str], ...] = ()  # (SQL condition, what is wrong)


_EMPTY = ("coalesce({x}, '') = ''", "is empty")
_WHOLE = (
    ("{x} <> '' AND NOT regexp_full_match({x}, '-?[0-9]+')", "is not a whole number"),
    ("{x} <> '' AND TRY_CAST({x} AS BIGINT) IS NULL", "does not fit in 64 bits"),
)
_FLOAT = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_DATE = r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?(Z|[+-]\d{2}(:?\d{2})?)?)?"
# A zone counts, and UTC stands in for none because it is the session's.
_MICROSECONDS = "epoch_us(TRY_CAST({x} AS TIMESTAMPTZ))"
_EARLY = "is before 1970"

ID = Check("VARCHAR", "{x}", (_EMPTY, ("contains({x}, chr(0))", "holds a NUL byte")))
TEXT = Check("VARCHAR", "nullif({x}, '')")
ORDER = Check("BIGINT", "TRY_CAST({x} AS BIGINT)", (_EMPTY, *_WHOLE))
TICKS = Check("BIGINT", "TRY_CAST({x} AS BIGINT)", (*_WHOLE, ("TRY_CAST({x} AS BIGINT) < 0", _EARLY)))
ISO = Check(
    "BIGINT",
    f"{_MICROSECONDS} // 1000000",
    (
        (f"{{x}} <> '' AND NOT regexp_full_match({{x}}, '{_DATE}')", "is not an ISO 8601 time"),
        (f"{{x}} <> '' AND {_MICROSECONDS} IS NULL", "is not on the calendar"),
        (f"{_MICROSECONDS} < 0", _EARLY),
    ),
)
VALUE = Check(
    "DOUBLE",
    "TRY_CAST({x} AS DOUBLE)",
    (
        (f"{{x}} <> '' AND NOT regexp_full_match({{x}}, '{_FLOAT}')", "is not a finite number"),
        ("{x} <> '' AND NOT coalesce(isfinite(TRY_CAST({x} AS DOUBLE)), false)", "does not fit in a float64"),
    ),
)
LABEL = Check(
    "TINYINT",
    f"list_position({list(LABELS)}, {{x}}) - 1",
    ((f"coalesce({{x}}, '') NOT IN {LABELS}", f"is none of {', '.join(LABELS)}"),),
)


def event_checks(time: TimeFormat) -> dict[str, Check]:
    """The columns an event may have."""
    when = ISO if time == "iso" else TICKS
    return {"user": ID, "item": ID, "time": when, "order": ORDER, "value": VALUE, "kind": TEXT, "label": LABEL}


def time_format(table: RawTable) -> TimeFormat:
    """How the times of `table` are written, by its first rows; seconds where they do not tell."""
    column = table.select.get("time")
    if column is None:
        return "seconds"
    path = table.paths[0]
    first = next(iter(runs(path, table.layout, column_names(path, table.layout, [column]), [column])), None)
    texts = [text for text in first.table[column].to_pylist() if text][:LOOKED_AT] if first else []
    numbers = sorted(int(text) for text in texts if re.fullmatch(r"-?\d{1,18}", text))
    if 2 * len(numbers) <= len(texts):
        return "iso" if any(re.fullmatch(_DATE, text) for text in texts) else "seconds"
    return "milliseconds" if numbers[len(numbers) // 2] >= YEAR_2200 else "seconds"


def item_checks(table: RawTable) -> dict[str, Check]:
    """The columns of an item table: the item, and attributes kept as text."""
    return {"item": ID} | {name: TEXT for name in columns_of(table) if name != "item"}


LOOKUP_CHECKS = {"key": ID, "value": TEXT}
"""The columns of a table that others look up."""


def columns_of(table: RawTable) -> list[str]:
    """The names the table gives to its columns: ours."""
    return list(dict.fromkeys([*table.select, *table.derive, *table.constants, *table.lookups]))


@dataclass
class Intake:
    """What became of the rows of a table; a blank line is no row."""

    rows: int = 0
    blank: int = 0
    left_out: int = 0  # by the table's own `where`
    rejected: dict[str, int] = field(default_factory=dict)  # by reason


def ingest(con: "Connection", staged: str, table: RawTable, checks: Mapping[str, Check], bad_rows: float, label: str) -> Intake:
    """Stage each row of `table` in `staged`: `position`, its columns, and of a bad row `_reason` and `_text`.

    What the column x looks up must be staged in `{staged}_x` before. A UserError lists the first bad rows when their
    share of all rows exceeds `bad_rows`.
    """
    ours = columns_of(table)
    _require_names(ours, checks)
    typed = "".join(f"{quoted(name)} {checks[name].type}, " for name in ours)
    con.execute(f"CREATE TABLE {staged} (position BIGINT, {typed}_reason VARCHAR, _text VARCHAR)")
    for name in table.lookups:
        _keep_first(con, f"{staged}_{name}")
    needed = [*table.select.values(), *(lookup.column for lookup in table.lookups.values())]
    intake = Intake()
    with task(f"Reading {label}", sum(path.stat().st_size for path in table.paths), "bytes") as advance:
        for place, path in enumerate(table.paths):
            names = column_names(path, table.layout, needed)
            sql = _staging(staged, table, checks, place)
            for run in runs(path, table.layout, names, _wanted(table, names, needed)):
                _stage(con, staged, sql, place * FILE_STEP, run, intake)
                advance(run.bytes)
    if not intake.rows:
        header = isinstance(table.layout, Text) and table.layout.header
        raise UserError(f"{table.paths[0]} holds no rows{' below its header' if header else ''}.")
    reasons = f"SELECT _reason, count(*) FROM {staged} WHERE _reason IS NOT NULL GROUP BY _reason ORDER BY _reason"
    intake.rejected.update(dict(con.execute(reasons).fetchall()))
    _refuse(con, staged, table, intake, bad_rows)
    return intake


def _require_names(ours: Sequence[str], checks: Mapping[str, Check]) -> None:
    known = list(checks)
    for name in ours:
        if name not in checks:
            raise UserError(f"No column may be called {name!r} here{closest(name, known)}.")
        if name.startswith("_") or name.casefold() == "position":
            raise UserError(f"No column may be called {name!r} here, because turborec's own is: rename it.")
    for name, check in checks.items():
        if check is ID and name not in ours:
            raise UserError(f"A column must be selected as {name!r}; {', '.join(ours)} are.")
    _require_distinct(ours)


def _require_distinct(names: Sequence[str]) -> None:
    """SQL does not tell letters of either case apart."""
    alike = Counter(name.casefold() for name in names)
    clash = [name for name in names if alike[name.casefold()] > 1]
    if clash:
        raise UserError(f"The columns {', '.join(map(repr, clash))} differ in upper and lower case only: rename one.")


def _keep_first(con: "Connection", staged: str) -> None:
    """Leave one value of each key in a staged lookup, as `{staged}_told`."""
    first = f'SELECT "key", arg_min("value", position) AS "value" FROM {quoted(staged)} WHERE _reason IS NULL GROUP BY "key"'
    con.execute(f"CREATE TABLE {quoted(f'{staged}_told')} AS {first}")


def bad_records(con: "Connection", staged: str, table: RawTable) -> Iterator[BadRow]:
    """The bad rows in the order of the files."""
    escapes = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
    found = con.execute(f"SELECT position, _reason, _text FROM {staged} WHERE _reason IS NOT NULL ORDER BY position")
    while rows := found.fetchmany(1000):
        for position, reason, text in rows:
            place, line = divmod(position, FILE_STEP)
            yield table.paths[place].name, line, reason, text.translate(escapes)


def write_quarantine(path: Path, records: Iterable[BadRow]) -> None:
    """Write bad rows as tab-separated text; a row shows the columns that are used, cut to `SHOWN_CHARACTERS`."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in chain([("file", "line", "reason", "row")], records):
            file.write("\t".join(map(str, record)) + "\n")


def _refuse(con: "Connection", staged: str, table: RawTable, intake: Intake, bad_rows: float) -> None:
    bad = sum(intake.rejected.values())
    if bad > bad_rows * intake.rows:
        shown = list(islice(bad_records(con, staged, table), SHOWN_ROWS))
        listed = "\n".join(f"  {file}:{line}: {reason}: {text}" for file, line, reason, text in shown)
        remedy = "Mend these rows, or allow a larger share and they are left out." if bad_rows else "Mend these rows."
        if any("time" in reason and "whole number" in reason for _, _, reason, _ in shown):
            remedy += " Times written as dates are read with data.source.time_format=iso."
        raise UserError(
            f"{bad:,} of {intake.rows:,} rows are bad, a larger share than the {bad_rows:g} allowed by bad_rows:\n{listed}"
            f"\n{remedy}"
        )


def _stage(con: "Connection", staged: str, sql: str, base: int, run: Run, intake: Intake) -> None:
    import duckdb
    import pyarrow as pa

    con.register("run", run.table)
    try:
        [(kept,)] = con.execute(f"INSERT INTO {staged} {sql}").fetchall()
    except (duckdb.ProgrammingError, duckdb.DataError) as error:
        raise UserError(f"The SQL stated for the columns does not run: {error}") from error
    finally:
        con.unregister("run")
    if run.faults:
        faults = {
            "position": pa.array([base + fault.line for fault in run.faults]),
            "_reason": pa.array([fault.reason for fault in run.faults]),
            "_text": pa.array([fault.text[:SHOWN_CHARACTERS] for fault in run.faults]),
        }
        con.register("faults", pa.table(faults))
        con.execute(f"INSERT INTO {staged} BY NAME SELECT * FROM faults")
        con.unregister("faults")
    intake.rows += run.table.num_rows + len(run.faults)
    intake.blank += run.blank
    intake.left_out += run.table.num_rows - kept


def _staging(staged: str, table: RawTable, checks: Mapping[str, Check], place: int) -> str:
    """SQL that checks and casts the rows of the registered table `run`, which come from the file at `place`."""
    sources = {name: quoted(column) for name, column in table.select.items()} | dict(table.derive)
    sources |= {name: literal(texts[place]) for name, texts in table.constants.items()}
    sources |= {name: _told(f"{staged}_{name}_told", lookup) for name, lookup in table.lookups.items()}
    texts = [f"CAST({source} AS VARCHAR) AS {quoted(name)}" for name, source in sources.items()]
    values = [f"{checks[name].value.replace('{x}', quoted(name))} AS {quoted(name)}" for name in sources]
    faults = [
        f"WHEN {condition.replace('{x}', quoted(name))} THEN {literal(f'{name} {wrong}')}"
        for name in sources
        for condition, wrong in _refused(name, table, checks)
    ]
    row = ", ".join(f"coalesce({quoted(name)}, '')" for name in sources)
    return f"""
        SELECT position, {", ".join(values)}, _reason,
            CASE WHEN _reason IS NOT NULL THEN left(concat_ws(chr(9), {row}), {SHOWN_CHARACTERS}) END
        FROM (
            SELECT *, CASE {" ".join(faults)} END AS _reason FROM (
                SELECT {place * FILE_STEP} + {quoted(LINE)} AS position, {", ".join(texts)}
                FROM run {f"WHERE {table.where}" if table.where else ""}))"""


def _told(told: str, lookup: Lookup) -> str:
    return f'(SELECT told."value" FROM {quoted(told)} AS told WHERE told."key" = run.{quoted(lookup.column)})'


def _refused(name: str, table: RawTable, checks: Mapping[str, Check]) -> tuple[tuple[str, str], ...]:
    """What refuses a row for its column `name`; an id that was looked up is empty where it was not found."""
    if name not in table.lookups:
        return checks[name].refused
    missing = f"is not in {table.lookups[name].table.paths[0].name}"
    return tuple((test, missing if (test, wrong) == _EMPTY else wrong) for test, wrong in checks[name].refused)


def _wanted(table: RawTable, names: Sequence[str], needed: Sequence[str]) -> list[str]:
    """The columns of the file that are needed or that the stated SQL may mention."""
    sql = " ".join([table.where or "", *table.derive.values()]).casefold()
    wanted = [name for name in names if name in needed or name.casefold() in sql]
    _require_distinct(wanted)
    return wanted


def literal(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
