"""What the headers and the numbers of atomic files mean: RecBole's, and MMRec's, which are the same without types."""

import zlib
from collections.abc import Mapping
from pathlib import Path

from turborec.errors import UserError, closest
from turborec.sources._local import opened

TYPES = ("token", "token_seq", "float", "float_seq")
LONGEST_HEADER = 2**20

# RecBole's numbers are floats: `8.8e8`, `881250949.0`. Whole ones below 2^53 are exact as a double; the others stay as they
# are written, to be read as the whole numbers they are or to be refused.
_WHOLE = """CASE WHEN regexp_full_match({x}, '[0-9]+[.]?[0-9]*([eE][+]?[0-9]+)?') AND TRY_CAST({x} AS DOUBLE) < 9007199254740992
    AND TRY_CAST({x} AS DOUBLE) = floor(TRY_CAST({x} AS DOUBLE))
    THEN CAST(CAST(TRY_CAST({x} AS DOUBLE) AS BIGINT) AS STRING) ELSE {x} END"""
_PART = "CASE {x} WHEN '0' THEN 'train' WHEN '1' THEN 'valid' WHEN '2' THEN 'test' ELSE {x} END"
DERIVED = {"time": _WHOLE, "order": _WHOLE, "label": _PART}
"""SQL for what is not written as we read it."""

DEFAULTS = {"time": "timestamp", "value": "rating"}
"""Columns that are read where they are there."""

Columns = Mapping[str, str]
"""The columns of a file: name -> `name:type`, as its header has it."""


def chosen_of(named: Mapping[str, str | None], columns: Columns, path: Path) -> dict[str, str]:
    """Our names and the columns that have what they mean: those that are named, else the default ones where they are there."""
    chosen = {}
    for ours, name in named.items():
        wanted = name or DEFAULTS.get(ours, "")
        if name and name not in columns:
            raise UserError(f"{path} has no column {name!r}{closest(name, tuple(columns))}: state which one is the {ours}.")
        if wanted in columns:
            chosen[ours] = columns[wanted]
    sequences = [column for column in chosen.values() if column.endswith("_seq")]
    if sequences:
        raise UserError(f"{path}: {', '.join(sequences)} hold sequences, where a single value is needed.")
    return chosen


def derived(chosen: Mapping[str, str]) -> dict[str, str]:
    """The SQL for those of our columns that are not written as we read them, of their columns in a file."""
    return {name: sql.replace("{x}", _quoted(chosen[name])) for name, sql in DERIVED.items() if name in chosen}


def columns_of(path: Path, separator: str) -> Columns:
    """What the header says; without any types, as MMRec writes it, a column is its name."""
    fields = _header(path).split(separator)
    typed = any(":" in field for field in fields)
    for field in fields:
        if typed and field.partition(":")[2] not in TYPES:
            raise UserError(
                f"The header of {path} must consist of name:type, separated by {separator!r}, with the types "
                f"{', '.join(TYPES)}; got {field[:200]!r}."
            )
    names = [field.partition(":")[0] for field in fields]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"The header of {path} names the column {twice!r} twice: rename one of them.")
    return dict(zip(names, fields, strict=True))


def _header(path: Path) -> str:
    """The first line of a file, compressed or not."""
    try:
        with opened(path) as file:
            line = file.readline(LONGEST_HEADER).rstrip(b"\r\n").decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} does not begin with a header in UTF-8: {error.reason} at byte {error.start}.") from error
    if not line:
        raise UserError(f"{path} is empty, or its first line is: expected a header such as user_id:token, item_id:token.")
    return line


def _quoted(column: str) -> str:
    """A column as an SQL identifier."""
    return '"' + column.replace('"', '""') + '"'
