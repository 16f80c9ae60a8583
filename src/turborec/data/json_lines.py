"""Files of one object a line, as JSON or as Python prints it: rows of text, and a fault for every line that is no object.

JSON is read by pydantic's own parser, which is faster than the standard library's and refuses what is not JSON, such as NaN.
"""

import ast
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from turborec.data import chunks
from turborec.data.chunks import Fault, Run
from turborec.data.schema import LINE, JsonLines
from turborec.errors import UserError

LOOKED_AT = 1000
"""Lines that tell the keys where none are stated."""

LONGEST = {"json": 2**23, "python": 2**19}
"""Characters of a line that is read at all: its objects take many times as much memory, Python's literals most."""

Row = list[str | None]


def object_names(path: Path, layout: JsonLines) -> tuple[str, ...]:
    """The keys a row may have: those stated, or those of the first objects as they come."""
    chunks.first_line(path)
    if layout.columns is not None:
        return layout.columns
    chunk, _ = next(chunks.whole_lines(path), (b"", 0))
    names: dict[str, None] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for line in chunks.decoded(chunk, "utf-8", 1)[0][:LOOKED_AT]:
            try:
                outer, rows = _objects(line, layout)
            except ValueError:  # told with its line when the rows are read
                continue
            for row in (outer, *rows):
                names |= dict.fromkeys(key for key in row if isinstance(key, str) and key != layout.rows)
    if not names:
        raise UserError(f'{path} does not begin with objects, one a line: expected lines such as {{"user": "u1", …}}.')
    return tuple(names)


def object_runs(path: Path, layout: JsonLines, wanted: Sequence[str]) -> Iterator[Run]:
    """The rows of a file; those of one line share its number."""
    first = 1
    for chunk, size in chunks.whole_lines(path):
        lines, faults = chunks.decoded(chunk, "utf-8", first)
        with warnings.catch_warnings():  # Python would complain of escapes that it does not know
            warnings.simplefilter("ignore")
            run = _run(lines, faults, first, layout, wanted, size)
        yield run
        first += len(lines)


def _run(lines: list[str], faults: list[Fault], first: int, layout: JsonLines, wanted: Sequence[str], size: int) -> Run:
    import pyarrow as pa

    unreadable = {fault.line for fault in faults}
    numbers: list[int] = []
    rows: list[Row] = []
    for number, line in enumerate(lines, start=first):
        if not line or number in unreadable:
            continue
        try:
            texts = _texts(*_objects(line, layout), layout, wanted)
        except ValueError as error:
            faults.append(Fault(number, str(error), line))
            continue
        rows += texts
        numbers += [number] * len(texts)
    table = {LINE: pa.array(numbers, pa.int64())}
    for place, name in enumerate(wanted):
        table[name] = pa.array([row[place] for row in rows], pa.large_string())
    return Run(pa.table(table), faults, lines.count(""), size)


def _objects(line: str, layout: JsonLines) -> tuple[dict[Any, Any], list[dict[Any, Any]]]:
    """The object of a line, and those in it that are the rows; a ValueError says what is wrong."""
    if len(line) > LONGEST[layout.syntax]:
        raise ValueError(f"longer than {LONGEST[layout.syntax]:,} characters")
    outer = _json(line) if layout.syntax == "json" else _literal(line)
    if not isinstance(outer, dict):
        raise ValueError("not an object")
    if layout.rows is None:
        return outer, []
    rows = outer.get(layout.rows)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{layout.rows} is no list of objects")
    return outer, rows


def _json(line: str) -> Any:
    try:
        return from_json(line, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError("not JSON") from error


def _literal(line: str) -> Any:
    try:
        return ast.literal_eval(line)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:  # all of them for what is no literal
        raise ValueError("not a Python literal") from error


def _texts(outer: dict[Any, Any], inner: list[dict[Any, Any]], layout: JsonLines, wanted: Sequence[str]) -> list[Row]:
    """The rows of a line."""
    row = [text_of(outer.get(name)) for name in wanted]
    if layout.rows is None:
        rows = [row]
    else:
        rows = [[text_of(own[name]) if name in own else text for name, text in zip(wanted, row, strict=True)] for own in inner]
    if layout.syntax == "python":  # which, unlike JSON, may hold what no encoding can write
        try:
            "".join(text or "" for texts in rows for text in texts).encode()
        except UnicodeEncodeError as error:
            raise ValueError("holds half a character") from error
    return rows


def text_of(value: Any) -> str | None:
    """A value as text: as `rows.py` writes columns."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2.0**53 else repr(value)
    if isinstance(value, list | tuple):
        return "|".join(text for entry in value if (text := text_of(entry)) is not None)
    return None
