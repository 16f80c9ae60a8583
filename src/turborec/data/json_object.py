"""A file that is one JSON object: a row for each of its keys, or for each entry of the list that a key has.

Unlike other raw files it is held whole while it is read, since an object ends with its last character.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from turborec.data import chunks
from turborec.data.chunks import Fault, Run
from turborec.data.json_lines import text_of
from turborec.data.schema import ENTRY, KEY, LINE, PLACE, JsonObject
from turborec.errors import UserError

ROWS = 2**17
"""Of a run."""

SHOWN = 200
"""Characters of a value that a fault shows."""


def names_of(layout: JsonObject) -> tuple[str, ...]:
    """The columns that a row may have."""
    return (KEY, *(layout.columns or (ENTRY, PLACE)))


def runs_of(path: Path, layout: JsonObject, wanted: Sequence[str]) -> Iterator[Run]:
    """The rows in the order of the keys; those of one key share its number, from 1 on."""
    with chunks.opened(path) as (stream, _):
        content = stream.read()
    try:
        whole = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from error
    if not isinstance(whole, dict):
        raise UserError(f"{path} must hold one JSON object of keys and values, got a {type(whole).__name__}.")
    left = path.stat().st_size
    rows: list[tuple[int, dict[str, Any]]] = []
    faults: list[Fault] = []
    for number, (key, value) in enumerate(whole.items(), start=1):
        try:
            rows += [(number, row) for row in _rows(key, value, layout)]
        except ValueError as error:
            faults.append(Fault(number, str(error), f"{key}: {value}"[:SHOWN]))
        if len(rows) >= ROWS:
            yield _run(rows, faults, wanted, 0)
            rows, faults = [], []
    yield _run(rows, faults, wanted, left)


def _rows(key: str, value: Any, layout: JsonObject) -> list[dict[str, Any]]:
    if layout.columns:
        if not isinstance(value, dict):
            raise ValueError(f"no object with {', '.join(layout.columns)}")
        return [{**value, KEY: key}]
    entries = value if isinstance(value, list) else [value]
    if any(isinstance(entry, dict | list) or entry is None for entry in entries):
        raise ValueError("no text, no number and no list of those")
    return [{KEY: key, ENTRY: entry, PLACE: place} for place, entry in enumerate(entries)]


def _run(rows: list[tuple[int, dict[str, Any]]], faults: list[Fault], wanted: Sequence[str], size: int) -> Run:
    import pyarrow as pa

    table = {LINE: pa.array([number for number, _ in rows], pa.int64())}
    for name in wanted:
        table[name] = pa.array([text_of(row.get(name)) for _, row in rows], pa.large_string())
    return Run(pa.table(table), faults, 0, size)
