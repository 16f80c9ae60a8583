"""Numbers that describe the items, out of the files of a source into the store: read in blocks, every row checked.

Letters: V items, W numbers a row.
"""

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from turborec.data import chunks
from turborec.data.schema import FEATURE_NAME, FeatureTable
from turborec.data.store import Ids, Int64
from turborec.errors import UserError
from turborec.progress import task

BLOCK_BYTES = 2**23
"""Of numbers in float64 that are looked at together."""

LARGEST = 1e15
"""Beyond it the squares of a row's numbers leave what a float32 can hold, and with them every norm and cosine."""

ARRAY = ".npy"
DELIMITERS = {".tsv": "\t", ".csv": ","}
PACKED = (".gz", ".bz2")
FLOATS = (np.float16, np.float32, np.float64)
NUMBER = re.compile("[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)

Numbers = NDArray[Any]


@dataclass(frozen=True)
class _Block:
    """Consecutive rows of a table."""

    places: range | list[int]  # by which a reader finds them: the rows of an array from 0 on, the lines of a text from 1 on
    ids: list[str]
    numbers: Numbers  # [N, W]


@dataclass(frozen=True)
class _Rows:
    """The rows of a file, and what to call one in a message."""

    path: Path
    unit: str  # row or line
    width: int  # W
    blocks: Iterator[_Block]

    def named(self, place: int, raw: str) -> str:
        """Such as `posters.npy, row 3 (item '17')`."""
        return f"{self.path}, {self.unit} {place} (item {raw!r})"


def form_of(table: FeatureTable) -> str:
    """How the file of a table is laid out: `.npy`, or by which delimiter; a UserError where its name does not tell."""
    name = table.path.name.lower()
    if name.endswith(ARRAY):
        return ARRAY
    packed = next((suffix for suffix in PACKED if name.endswith(suffix)), "")
    delimiter = DELIMITERS.get(Path(name.removesuffix(packed)).suffix)
    if delimiter is None:
        raise UserError(
            f"The suffix of the feature table {table.path} does not tell how it is laid out: expected {ARRAY}, or "
            f"{' or '.join(DELIMITERS)} with {' or '.join(PACKED)} after it or not."
        )
    if table.ids is not None:
        raise UserError(f"{table.path} has the raw ids in its first column, so the file of ids {table.ids} must be left out.")
    return delimiter


def require_sound(features: Mapping[str, FeatureTable]) -> None:
    """Refuse what is seen to be wrong before any row is read: names, missing files, arrays of another kind."""
    for name, table in features.items():
        if not re.fullmatch(FEATURE_NAME, name):
            raise UserError(
                f"A feature table cannot be called {name!r}: its name must begin with a letter from a to z and go on with "
                "these, digits and _."
            )
        for path in table.files:
            if not path.is_file():
                raise UserError(f"The file {path} of the feature table {name!r} does not exist.")
        if form_of(table) == ARRAY:
            _array(table.path)


def write_features(features: Mapping[str, FeatureTable], ids: Ids, folder: Path) -> dict[str, dict[str, Any]]:
    """Write `features.NAME.npy`, float32 [V + 1, W], for each table; what the card says of it.

    Row i is item i, whose raw id is row i - 1 of `ids`. Row 0 and those of items without a row in the table are NaN.
    """
    return {name: _write(name, table, ids, folder / f"features.{name}.npy") for name, table in sorted(features.items())}


def _write(name: str, table: FeatureTable, ids: Ids, target: Path) -> dict[str, Any]:
    rows = _array_rows(table) if form_of(table) == ARRAY else _text_rows(table.path, form_of(table), ids)
    told: Int64 = np.full(len(ids) + 1, -1, dtype=np.int64)  # where each item has its row
    skipped = 0
    with target.open("w+b") as file, task(f"Reading features: {name}") as advance:
        begin = _blank(file, len(ids) + 1, rows.width)
        for block in rows.blocks:
            items = ids.find(block.ids) + 1
            numbers = _finite(rows, block)
            for item, place, raw, row in zip(items.tolist(), block.places, block.ids, numbers, strict=True):
                if not item:
                    skipped += 1
                    continue
                if told[item] >= 0:
                    raise UserError(f"{rows.named(place, raw)}: {rows.unit} {told[item]} is this item's, too. Keep one.")
                told[item] = place
                file.seek(begin + item * row.nbytes)
                file.write(row.tobytes())
            advance(len(block.ids))
    _require_items(rows, table, ids, told)
    described = int((told >= 0).sum())
    return {"files": [path.name for path in table.files], "width": rows.width, "items": described, "skipped": skipped}


def _blank(file: BinaryIO, count: int, width: int) -> int:
    """Write the array with NaN alone, so that no later write needs room on the disk; where its first row begins."""
    header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": (count, width)}
    np.lib.format.write_array_header_1_0(file, header)
    begin = file.tell()
    block = max(1, BLOCK_BYTES // (8 * width))
    for start in range(0, count, block):
        file.write(np.full((min(block, count - start), width), np.nan, dtype=np.float32).tobytes())
    return begin


def _finite(rows: _Rows, block: _Block) -> NDArray[np.float32]:
    """The numbers as a store keeps them; the first that is none is refused with its row."""
    with np.errstate(over="ignore"):
        kept = np.ascontiguousarray(block.numbers, dtype=np.float32)
    sound = np.abs(kept) <= LARGEST  # and a number at all
    if not sound.all():
        row, column = (int(place) for place in np.argwhere(~sound)[0])
        number = float(block.numbers[row, column])
        fault = f"is beyond {LARGEST:g}, where squares cannot be added up" if np.isfinite(number) else "is not finite"
        raise UserError(
            f"{rows.named(block.places[row], block.ids[row])}: number {column + 1} of {rows.width}, {number:g}, {fault}. An "
            "item that has no such features must have no row, and what is in a row must all be finite."
        )
    return kept


def _require_items(rows: _Rows, table: FeatureTable, ids: Ids, told: Int64) -> None:
    """Whether the items that are described are those they should be."""
    lacking = np.flatnonzero(told[1:] < 0)
    if form_of(table) == ARRAY and table.ids is None and len(lacking):
        raise UserError(
            f"{rows.path} has no row for the item {ids.raw(lacking[:1])[0]!r}: without a file of ids the raw ids are the "
            "numbers of the rows, from 0 on. Name a file that has the raw id of each row on a line of its own."
        )
    if len(lacking) == len(ids):
        raise UserError(
            f"{rows.path} has a row for none of the {len(ids):,} items, such as {ids.raw([0])[0]!r}: are its ids the raw "
            "ids of the items?"
        )


def _array(path: Path) -> NDArray[Any]:
    """The file's array, memory-mapped and checked for its shape and type; nothing pickled is ever read."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as an array of numbers: {error}.") from error
    if array.dtype.newbyteorder("=") not in FLOATS:
        raise UserError(f"{path} holds {array.dtype}: expected float16, float32 or float64. Write it anew as one of them.")
    if array.ndim != 2 or not array.shape[1]:
        raise UserError(f"{path} has the shape {list(array.shape)}: expected rows of numbers, [rows, width].")
    return array


def _array_rows(table: FeatureTable) -> _Rows:
    array = _array(table.path)
    return _Rows(table.path, "row", array.shape[1], _array_blocks(table, array))


def _array_blocks(table: FeatureTable, array: NDArray[Any]) -> Iterator[_Block]:
    count, width = array.shape
    lines = iter(_id_lines(table.ids)) if table.ids else map(str, range(count))
    read = 0
    size = max(1, BLOCK_BYTES // (8 * width))
    for start in range(0, count, size):
        places = range(start, min(start + size, count))
        named = list(islice(lines, len(places)))
        read += len(named)
        if len(named) < len(places):
            break
        # Copied, for what is mapped counts as the process's memory until the map is gone.
        yield _Block(places, named, np.array(_array(table.path)[start : places.stop]))
    read += sum(1 for _ in lines)
    if read != count:
        raise UserError(f"{table.ids} has {read:,} lines, and {table.path} {count:,} rows: each row needs its id on a line.")


def _id_lines(path: Path) -> Iterator[str]:
    """The raw ids of rows."""
    for first, lines in _lines(path):
        if "" in lines:
            raise UserError(f"{path}, line {first + lines.index('')} is empty: expected the raw id of an item on every line.")
        yield from lines


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a file in chunks, each with the number of its first."""
    with chunks.readable(path):
        chunks.first_line(path)
        first = 1
        for chunk, _ in chunks.whole_lines(path):
            lines, faults = chunks.decoded(chunk, "utf-8", first)
            if faults:
                raise UserError(f"{path}, line {faults[0].line}: {faults[0].reason}.")
            yield first, lines
            first += len(lines)


def _text_rows(path: Path, delimiter: str, ids: Ids) -> _Rows:
    with chunks.readable(path):
        line = chunks.first_line(path).rstrip(b"\r\n").decode("utf-8", errors="replace")
    first, *names = _cells(path, 1, line, delimiter)
    if not names:
        raise UserError(
            f"{path} must begin with a header of the item and its numbers, separated by {delimiter!r}: got {line[:200]!r}."
        )
    if ids.find([first])[0] >= 0:
        raise UserError(f"{path} begins with a row, that of the item {first!r}, where its header should be: put one above it.")
    return _Rows(path, "line", len(names), _text_blocks(path, delimiter, len(names)))


def _text_blocks(path: Path, delimiter: str, width: int) -> Iterator[_Block]:
    for first, lines in _lines(path):
        places = [place for place, line in enumerate(lines, start=first) if line and place > 1]
        cells = [_id_and_rest(path, place, lines[place - first], delimiter) for place in places]
        if cells:
            yield _Block(places, [raw for raw, _ in cells], _parsed(path, places, cells, delimiter, width))


def _id_and_rest(path: Path, place: int, line: str, delimiter: str) -> tuple[str, str]:
    """The raw id, and the numbers as text between delimiters."""
    raw, _, rest = line.partition(delimiter)
    if delimiter == "," and '"' in line:
        raw, *cells = _cells(path, place, line, delimiter)
        rest = delimiter.join(cells)
    if not raw:
        raise UserError(f"{path}, line {place} begins with no raw id of an item.")
    return raw, rest


def _cells(path: Path, place: int, line: str, delimiter: str) -> list[str]:
    if delimiter != "," or '"' not in line:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, line {place}: quotes do not match: {error}.") from error


def _parsed(path: Path, places: list[int], cells: list[tuple[str, str]], delimiter: str, width: int) -> Numbers:
    """The numbers of rows, float64 [N, W]."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.split_pattern(pa.array([rest for _, rest in cells], pa.large_string()), delimiter)
    widths = np.asarray(pc.list_value_length(texts))
    if (widths != width).any():
        row = int(np.argmax(widths != width))
        raise UserError(
            f"{path}, line {places[row]} (item {cells[row][0]!r}) has {widths[row]} numbers, where the header names {width}."
        )
    flat = texts.flatten()
    try:
        numbers = np.asarray(flat.cast(pa.float64()))
    except pa.ArrowInvalid:  # which says neither where, nor whether it is a mere `+1`
        numbers = np.empty(len(flat))
        for place, text in enumerate(flat.to_pylist()):
            if not NUMBER.fullmatch(text):
                row, column = divmod(place, width)
                raise UserError(
                    f"{path}, line {places[row]} (item {cells[row][0]!r}): number {column + 1} of {width} is {text[:50]!r}, "
                    "which is no number."
                ) from None
            numbers[place] = float(text)
    return numbers.reshape(-1, width)
