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

from turborec.data.chunks import Run
from turborec.data.engine import Engine, File, Part, number
from turborec.data.rows import column_names, row_count, runs
from turborec.data.schema import FILE_STEP, LINE, Columnar, Lookup, RawTable, Text, TimeFormat
from turborec.errors import UserError, closest
from turborec.progress import Advance, task

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN_ROWS = 5
SHOWN_CHARACTERS = 200
LOOKED_AT = 1000
"""Rows that decide how times are written."""
YEAR_2200 = 7_258_118_400
"""Seconds at its beginning; today's milliseconds are far above it."""
YEAR_1973, YEAR_1990 = 94_694_400, 631_152_000
"""Seconds at their beginnings."""

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
_FLOAT = "[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?"
_CLOCK = "[0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,9})?)?"
_ZONE = "Z|[+-](0[0-9]|1[0-7])(:?[0-5][0-9])?"
_DATE = f"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}([T ]{_CLOCK}({_ZONE})?)?"
_EARLY = "is before 1970"

ID = Check("STRING", "{x}", (_EMPTY, ("contains({x}, chr(0))", "holds a NUL byte")))
TEXT = Check("STRING", "nullif({x}, '')")
ORDER = Check("BIGINT", "TRY_CAST({x} AS BIGINT)", (_EMPTY, *_WHOLE))
TICKS = Check("BIGINT", "TRY_CAST({x} AS BIGINT)", (*_WHOLE, ("TRY_CAST({x} AS BIGINT) < 0", _EARLY)))
ISO = Check(
    "BIGINT",
    "divide(instant_us({x}), 1000)",
    (
        (f"{{x}} <> '' AND NOT regexp_full_match({{x}}, '{_DATE}')", "is not an ISO 8601 time"),
        ("{x} <> '' AND (instant_us({x}) IS NULL OR substr({x}, 12, 2) = '24')", "is not on the calendar"),
        ("instant_us({x}) < 0", _EARLY),
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
    f"CAST(CASE {{x}} {' '.join(f'WHEN {label!r} THEN {place}' for place, label in enumerate(LABELS))} END AS TINYINT)",
    ((f"coalesce({{x}}, '') NOT IN {LABELS}", f"is none of {', '.join(LABELS)}, which atomic files call 0, 1, 2"),),
)
CLICKED = Check(
    "TINYINT",
    "CAST({x} = '1' AS TINYINT)",
    (("coalesce({x}, '') NOT IN ('0', '1')", "is neither 0 nor 1, for what was shown and for what was clicked too"),),
)


def event_checks(time: TimeFormat) -> dict[str, Check]:
    """The columns an event may have."""
    when = ISO if time == "iso" else TICKS
    return {"user": ID, "item": ID, "time": when, "order": ORDER, "value": VALUE, "kind": TEXT, "label": LABEL}


def impression_checks(time: TimeFormat) -> dict[str, Check]:
    """The columns of what was shown."""
    return {"user": ID, "item": ID, "time": ISO if time == "iso" else TICKS, "clicked": CLICKED}


def time_format(table: RawTable) -> TimeFormat:
    """How the times of `table` are written, by its first rows; seconds where they do not tell."""
    texts = [text for text in _first_times(table) if text][:LOOKED_AT]
    numbers = sorted(int(text) for text in texts if re.fullmatch(r"-?\d{1,18}", text))
    if 2 * len(numbers) <= len(texts):
        return "iso" if any(re.fullmatch(_DATE, text) for text in texts) else "seconds"
    return "milliseconds" if numbers[len(numbers) // 2] >= YEAR_2200 else "seconds"


def _first_times(table: RawTable) -> Iterable[str | None]:
    """The texts of the time column where it begins, which may be in a later file than the first."""
    column = table.select.get("time")
    if column is None:
        return table.constants.get("time", ())
    for path in table.paths:
        for run in runs(path, table.layout, column_names(path, table.layout, table.select.values()), [column]):
            if run.table.num_rows:
                texts: list[str | None] = run.table[column].to_pylist()
                return texts
    return ()


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


def ingest(con: Engine, staged: str, table: RawTable, checks: Mapping[str, Check], bad_rows: float, label: str) -> Intake:
    """Stage each row of `table` in `staged`: `position`, its columns, and of a bad row `_reason` and `_text`.

    What the column x looks up must be staged in `{staged}_x` before. A UserError lists the first bad rows when their
    share of all rows exceeds `bad_rows`.
    """
    ours = columns_of(table)
    _require_names(ours, checks)
    typed = "".join(f"{quoted(name)} {checks[name].type}, " for name in ours)
    for name in table.lookups:
        _keep_first(con, f"{staged}_{name}")
    intake = Intake()
    with task(f"Reading {label}", sum(path.stat().st_size for path in table.paths), "bytes") as advance:
        parts = _parts(con, staged, table, checks, intake, advance)
        con.stage(staged, f"position BIGINT, {typed}_reason STRING, _text STRING", parts)
    if not intake.rows:
        header = isinstance(table.layout, Text) and table.layout.header
        raise UserError(f"{table.paths[0]} holds no rows{' below its header' if header else ''}.")
    intake.left_out = intake.rows - number(con, f"SELECT count(*) FROM {staged}")
    reasons = f"SELECT _reason, count(*) FROM {staged} WHERE _reason IS NOT NULL GROUP BY _reason ORDER BY _reason"
    intake.rejected.update(dict(con.rows(reasons)))
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


def _keep_first(con: Engine, staged: str) -> None:
    """Leave one value of each key in a staged lookup, as `{staged}_told`."""
    # Engines differ in whether a null can be the first value, so it takes part as an empty text.
    value = """nullif(min_by(coalesce("value", ''), position), '') AS "value\""""
    first = f'SELECT "key", {value} FROM {quoted(staged)} WHERE _reason IS NULL GROUP BY "key"'
    con.table(quoted(f"{staged}_told"), first)


def bad_records(con: Engine, staged: str, table: RawTable) -> Iterator[BadRow]:
    """The bad rows in the order of the files."""
    names = table.names
    escapes = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
    query = f"SELECT position, _reason, _text FROM {staged} WHERE _reason IS NOT NULL ORDER BY position"
    for batch in con.batches(query):
        for row in batch.to_pylist():
            place, line = divmod(row["position"], FILE_STEP)
            yield names[place], line, row["_reason"], row["_text"].translate(escapes)


def write_quarantine(path: Path, records: Iterable[BadRow]) -> None:
    """Write bad rows as tab-separated text; a row shows the columns that are used, cut to `SHOWN_CHARACTERS`."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in chain([("file", "line", "reason", "row")], records):
            file.write("\t".join(map(str, record)) + "\n")


def _refuse(con: Engine, staged: str, table: RawTable, intake: Intake, bad_rows: float) -> None:
    bad = sum(intake.rejected.values())
    if bad > bad_rows * intake.rows:
        shown = list(islice(bad_records(con, staged, table), SHOWN_ROWS))
        lines = [f"  {file}:{line}: {reason}: {text}" for file, line, reason, text in shown]
        listed = "\n".join([*lines, *([f"  … and {bad - len(shown):,} more"] if bad > len(shown) else [])])
        allowed = f", a larger share than the {bad_rows:g} allowed by data.prepare.bad_rows" if bad_rows else ""
        remedy = "Mend these rows, or allow a larger share and they are left out." if bad_rows else "Mend these rows."
        if any(reason.startswith("time") for _, _, reason, _ in shown):
            remedy += " Times are whole seconds or milliseconds since 1970, or ISO 8601 such as 2024-01-15T10:00:00."
        raise UserError(f"{bad:,} of {intake.rows:,} rows are bad{allowed}:\n{listed}\n{remedy}")


def _parts(
    con: Engine, staged: str, table: RawTable, checks: Mapping[str, Check], intake: Intake, advance: Advance
) -> Iterator[Part]:
    """The rows of all files, counted as they go by."""
    needed = [*table.select.values(), *(lookup.column for lookup in table.lookups.values())]
    sql, faulty = _staging(staged, table, checks), _faulty(table, checks)
    seen: set[int] = set()
    for place, path in enumerate(table.paths):
        constants = {_constant(name): texts[place] for name, texts in table.constants.items()}
        names = column_names(path, table.layout, needed)
        wanted = _wanted(table, names, needed)
        if isinstance(table.layout, Columnar) and con.reads(path, wanted):
            intake.rows += row_count(path)
            yield Part(sql, File(path, tuple(wanted), place * FILE_STEP, constants))
            advance(path.stat().st_size)
            continue
        for run in runs(path, table.layout, names, wanted, seen):
            intake.rows += run.table.num_rows + len(run.faults)
            intake.blank += run.blank
            yield Part(sql, _placed(run, place * FILE_STEP, constants))
            if run.faults:
                yield Part(faulty, _fault_table(run, place * FILE_STEP))
            advance(run.bytes)


def _placed(run: Run, base: int, constants: Mapping[str, str]) -> "pa.Table":
    """The rows of a run with their positions instead of their lines, and with what all rows of their file have."""
    import pyarrow as pa
    import pyarrow.compute as pc

    place = run.table.schema.get_field_index(LINE)
    rows = run.table.set_column(place, LINE, pc.add(run.table.column(place), base))
    for name, text in constants.items():
        rows = rows.append_column(name, pa.repeat(pa.scalar(text, pa.large_string()), len(rows)))
    return rows


def _fault_table(run: Run, base: int) -> "pa.Table":
    import pyarrow as pa

    faults = {
        LINE: pa.array([base + fault.line for fault in run.faults], pa.int64()),
        "_reason": pa.array([fault.reason for fault in run.faults], pa.string()),
        "_text": pa.array([fault.text[:SHOWN_CHARACTERS] for fault in run.faults], pa.string()),
    }
    return pa.table(faults)


def _faulty(table: RawTable, checks: Mapping[str, Check]) -> str:
    """SQL that stages rows which cannot be told apart into columns."""
    nothing = "".join(f"CAST(NULL AS {checks[name].type}) AS {quoted(name)}, " for name in columns_of(table))
    return f"SELECT {quoted(LINE)} AS position, {nothing}_reason, _text FROM run"


def _staging(staged: str, table: RawTable, checks: Mapping[str, Check]) -> str:
    """SQL that checks and casts the rows of the table `run`."""
    sources = {name: quoted(column) for name, column in table.select.items()} | dict(table.derive)
    sources |= {name: quoted(_constant(name)) for name in table.constants}
    sources |= {name: _told(f"{staged}_{name}_told", lookup) for name, lookup in table.lookups.items()}
    texts = [f"CAST({source} AS STRING) AS {quoted(name)}" for name, source in sources.items()]
    values = [f"{checks[name].value.replace('{x}', quoted(name))} AS {quoted(name)}" for name in sources]
    faults = [
        f"WHEN {condition.replace('{x}', quoted(name))} THEN {literal(f'{name} {wrong}')}"
        for name in sources
        for condition, wrong in _refused(name, table, checks)
    ]
    row = ", ".join(f"coalesce({quoted(name)}, '')" for name in sources)
    return f"""
        SELECT position, {", ".join(values)}, _reason,
            CASE WHEN _reason IS NOT NULL THEN left(concat_ws(chr(9), {row}), {SHOWN_CHARACTERS}) END AS _text
        FROM (
            SELECT *, CASE {" ".join(faults)} END AS _reason FROM (
                SELECT {quoted(LINE)} AS position, {", ".join(texts)}
                FROM run {f"WHERE {table.where}" if table.where else ""}))"""


def _constant(name: str) -> str:
    """The column of `run` with what all rows of a file have in our column `name`."""
    return f"{name} of the file"


def _told(told: str, lookup: Lookup) -> str:
    return f'(SELECT min(told."value") FROM {quoted(told)} AS told WHERE told."key" = run.{quoted(lookup.column)})'


def _refused(name: str, table: RawTable, checks: Mapping[str, Check]) -> tuple[tuple[str, str], ...]:
    """What refuses a row for its column `name`; an id that was looked up is empty where it was not found."""
    if name not in table.lookups:
        return checks[name].refused
    missing = f"is not in {table.lookups[name].table.paths[0].name}"
    return tuple((test, missing if (test, wrong) == _EMPTY else wrong) for test, wrong in checks[name].refused)


def _wanted(table: RawTable, names: Sequence[str], needed: Sequence[str]) -> list[str]:
    """The columns of the file that are needed or that the stated SQL may mention."""
    sql = " ".join([table.where or "", *table.derive.values()]).casefold()
    wanted = [name for name in names if name in needed or quoted(name)[1:-1].casefold() in sql]
    for own in (LINE, *map(_constant, table.constants)):
        if own in wanted:
            raise UserError(f"No column may be called {own!r}, because turborec's own is: rename it.")
    _require_distinct(wanted)
    return wanted


def literal(text: str) -> str:
    """A text as an SQL literal; a backslash by its number, since engines differ in what it stands for."""
    return "('" + text.replace("'", "''").replace("\\", "' || chr(92) || '") + "')"


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'
