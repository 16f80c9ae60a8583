"""The rows of raw files, in bounded memory: runs of text columns in which every row knows its line.

Text is cut into lines here rather than by the engine's own reader, which gives up a whole file at the first mixed line
ending, takes one stray quote for the rest of the file, and misplaces the rows that follow a blank line.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from turborec.data import chunks
from turborec.data.chunks import Fault, Run
from turborec.data.json_lines import object_names, object_runs
from turborec.data.json_object import names_of, runs_of
from turborec.data.lists import entries
from turborec.data.schema import ENTRY, LINE, LIST, PLACE, Columnar, JsonObject, Layout, Listed, Text
from turborec.errors import UserError, near

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_ROWS = 2**17
BLOB_ROWS = 2**6
PAGE_BYTES = 2**20
LONGEST_FIELD = 4 * 2**20  # where quotes are: what an unclosed one can cost
DELIMITERS = ("\t", ",", ";", "|", "::", " ")

Record = tuple[int, list[str]]
"""The line a record begins at, and its fields."""


def column_names(path: Path, layout: Layout, needed: Iterable[str]) -> tuple[str, ...]:
    """The file's columns; a UserError where one of `needed` is missing, or two columns share a name."""
    needed = list(needed)
    with chunks.readable(path):
        if isinstance(layout, Listed):
            names = (*_header(path, layout.text, needed), LIST, ENTRY, PLACE)
        elif isinstance(layout, Text):
            names = _header(path, layout, needed)
        elif isinstance(layout, JsonObject):
            names = names_of(layout)
        else:
            names = _schema_names(path) if isinstance(layout, Columnar) else object_names(path, layout)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path} has more than one column called {_list(twice)}: rename all but one.")
    for name in needed:
        if name not in names:
            raise UserError(f"{path} has no column {name!r}{near(name, names)}; it has {_list(names)}.")
    return names


def runs(
    path: Path, layout: Layout, names: Sequence[str], wanted: Sequence[str], seen: set[int] | None = None
) -> Iterator[Run]:
    """The rows of a file whose columns are `names`, with the columns that are `wanted`.

    `seen` are the hashes of lists that count once, in the files before this one: it is added to.
    """
    with chunks.readable(path):
        if isinstance(layout, Columnar):
            yield from _columnar_runs(path, wanted)
        elif isinstance(layout, Listed):
            own = names[: -len((LIST, ENTRY, PLACE))]
            yield from entries(_plain_runs(path, layout.text, own, own), layout, wanted, set() if seen is None else seen)
        elif isinstance(layout, JsonObject):
            yield from runs_of(path, layout, wanted)
        elif not isinstance(layout, Text):
            yield from object_runs(path, layout, wanted)
        elif layout.quote:
            yield from _quoted_runs(path, layout, names, wanted)
        else:
            yield from _plain_runs(path, layout, names, wanted)


def blobs(path: Path, item: str, column: str) -> Iterator[tuple[list[str | None], list[bytes | None]]]:
    """Raw ids beside the bytes in a column of a Parquet or Arrow file, a few rows at a time, since bytes may be large."""
    import pyarrow as pa

    with chunks.readable(path):
        for batch, _ in _batches(path, [item, column], BLOB_ROWS):
            content = batch.column(column)
            if not (pa.types.is_binary(content.type) or pa.types.is_large_binary(content.type)):
                raise UserError(f"{path}, column {column!r}: expected bytes, got {content.type}.")
            yield _as_text(batch.column(item), f"{path}, column {item!r}").to_pylist(), content.to_pylist()


def row_count(path: Path) -> int:
    """How many rows a Parquet file says it has."""
    import pyarrow.parquet as pq

    with chunks.readable(path):
        return int(pq.read_metadata(path).num_rows)


def _header(path: Path, layout: Text, needed: list[str]) -> tuple[str, ...]:
    if layout.quote and (len(layout.delimiter) != 1 or len(layout.quote) != 1):
        raise UserError(
            f"Where there are quotes, the delimiter and the quote must each be one character, got "
            f"{layout.delimiter!r} and {layout.quote!r}."
        )
    if layout.columns is None and not layout.header:
        raise UserError(f"{path} has no header: state the names of its columns.")
    line = chunks.first_line(path).rstrip(b"\r\n").decode(layout.encoding, errors="replace")
    if not line:
        raise UserError(f"{path} is empty, or its first line is: expected {'a header' if layout.header else 'a row'}.")
    expected = tuple(layout.columns or needed)
    if layout.delimiter not in line and len(expected) > 1:
        for delimiter in DELIMITERS:
            fields = _fields(line, delimiter, layout.quote)
            if set(needed) <= set(fields) if layout.header else len(fields) == len(expected):
                raise UserError(
                    f"{path} is not separated by {layout.delimiter!r}: expected {_list(expected)}, got the single "
                    f"column {line[:200]!r}. The delimiter {delimiter!r} would fit."
                )
    if not layout.header:
        return expected
    names = _fields(line, layout.delimiter, layout.quote)
    if layout.columns and names != layout.columns:
        raise UserError(f"{path} must begin with the columns {_list(expected)}, got {_list(names)}.")
    return names


def _fields(line: str, delimiter: str, quote: str) -> tuple[str, ...]:
    if not quote or len(delimiter) > 1:
        return tuple(line.split(delimiter))
    try:
        return tuple(next(csv.reader([line], delimiter=delimiter, quotechar=quote, strict=True)))
    except csv.Error as error:
        raise UserError(f"The quotes of the header {line[:200]!r} do not match: {error}.") from error


def _plain_runs(path: Path, layout: Text, names: Sequence[str], wanted: Sequence[str]) -> Iterator[Run]:
    """Without quotes a row is a line, and a whole chunk of lines is split at once."""
    import pyarrow as pa
    import pyarrow.compute as pc

    first = 1
    for chunk, size in chunks.whole_lines(path):
        lines, faults = chunks.decoded(chunk, layout.encoding, first)
        numbers = np.arange(first, first + len(lines))
        filled = np.fromiter(map(bool, lines), dtype=bool, count=len(lines))
        sound = filled.copy()
        sound[[fault.line - first for fault in faults]] = False
        if layout.header and first == 1:
            sound[0] = False
        fields = pc.split_pattern(pa.array(lines, pa.large_string()).filter(pa.array(sound)), layout.delimiter)
        widths = np.asarray(pc.list_value_length(fields))
        fits = widths == len(names)
        for line, width in zip(numbers[sound][~fits].tolist(), widths[~fits].tolist(), strict=True):
            faults.append(Fault(line, _width_reason(width, len(names)), lines[line - first]))
        values = fields.filter(pa.array(fits)).flatten()
        table = {LINE: pa.array(numbers[sound][fits])}
        for name in wanted:
            table[name] = values.take(pa.array(np.arange(names.index(name), len(values), len(names))))
        first += len(lines)
        yield Run(pa.table(table), faults, int((~filled).sum()), size)


def _quoted_runs(path: Path, layout: Text, names: Sequence[str], wanted: Sequence[str]) -> Iterator[Run]:
    """With quotes a row may span lines and is parsed by itself."""
    with chunks.opened(path) as (stream, raw), _field_limit():
        part: list[Record | Fault] = []
        seen = 0
        for record in _records(stream, layout, len(names)):
            part.append(record)
            if len(part) == CHUNK_ROWS or raw.tell() - seen >= chunks.CHUNK_BYTES:
                yield _quoted_run(part, names, wanted, raw.tell() - seen)
                part, seen = [], raw.tell()
        yield _quoted_run(part, names, wanted, raw.tell() - seen)


def _quoted_run(part: list[Record | Fault], names: Sequence[str], wanted: Sequence[str], size: int) -> Run:
    import pyarrow as pa

    faults = [record for record in part if isinstance(record, Fault)]
    rows = [record for record in part if not isinstance(record, Fault) and record[1]]
    table = {LINE: pa.array([line for line, _ in rows], pa.int64())}
    for name in wanted:
        place = names.index(name)
        table[name] = pa.array([fields[place] for _, fields in rows], pa.large_string())
    return Run(pa.table(table), faults, len(part) - len(faults) - len(rows), size)


def _records(stream: BinaryIO, layout: Text, width: int) -> Iterator[Record | Fault]:
    """Each record with the line it begins at; a blank line has no fields; the header is left out.

    Every line of a record that cannot be parsed is a fault, since nobody knows how many rows it held.
    """
    taken: list[bytes] = []

    def remembered() -> Iterator[str]:
        for line in stream:
            taken.append(line)
            yield line.decode(layout.encoding, errors="replace")

    reader = csv.reader(remembered(), delimiter=layout.delimiter, quotechar=layout.quote, strict=True)
    if layout.header:
        next(reader)
    while True:
        line = reader.line_num + 1
        taken.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            for place, content in enumerate(taken):
                text = content.rstrip(b"\r\n").decode(layout.encoding, errors="replace")
                yield Fault(line + place, f"quotes do not match: {error}", text)
            continue
        if not all(chunks.decodes(content, layout.encoding) for content in taken):
            yield Fault(line, chunks.encoding_reason(layout.encoding), layout.delimiter.join(fields))
        elif fields and len(fields) != width:
            yield Fault(line, _width_reason(len(fields), width), layout.delimiter.join(fields))
        else:
            yield line, fields


def _columnar_runs(path: Path, wanted: Sequence[str]) -> Iterator[Run]:
    import pyarrow as pa

    first = 1
    for batch, size in _batches(path, wanted):
        table = {LINE: pa.array(np.arange(first, first + batch.num_rows))}
        for name in wanted:
            table[name] = _as_text(batch.column(name), f"{path}, column {name!r}")
        first += batch.num_rows
        yield Run(pa.table(table), [], 0, size)


def _batches(path: Path, wanted: Sequence[str], rows: int = CHUNK_ROWS) -> Iterator[tuple["pa.RecordBatch", int]]:
    """The file's rows and the bytes they stand for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if _is_parquet(path):
        # Of large values a row group may be larger than memory: it is read a page at a time.
        paged = {} if rows == CHUNK_ROWS else {"buffer_size": PAGE_BYTES, "pre_buffer": False}
        with pq.ParquetFile(path, **paged) as file:
            for batch in file.iter_batches(rows, columns=list(wanted)):
                yield batch, path.stat().st_size * batch.num_rows // file.metadata.num_rows
        return
    with pa.memory_map(str(path)) as source:
        reader = _arrow(source)
        count = getattr(reader, "num_record_batches", None)  # a stream does not know
        for whole in reader if count is None else map(reader.get_batch, range(count)):
            for start in range(0, whole.num_rows, rows):
                batch = whole.select(list(wanted)).slice(start, rows)
                yield batch, batch.nbytes


def _as_text(column: "pa.Array", where: str) -> "pa.Array":
    """Any plain column as text: whole floats without a point, UTC times as ISO 8601, lists joined by `|`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    try:
        if pa.types.is_timestamp(kind):  # stored in UTC where a zone is named
            column = column.cast(pa.timestamp(kind.unit))
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            column = pc.binary_join(column.cast(pa.list_(pa.string())), "|")
        text = column.cast(pa.large_string())
        if pa.types.is_floating(kind):
            whole = pc.and_(pc.equal(column, pc.trunc(column)), pc.less(pc.abs(column), 2.0**53))
            text = pc.if_else(whole, pc.cast(column, pa.int64(), safe=False).cast(pa.large_string()), text)
            text = pc.if_else(pc.is_nan(column), pa.scalar(None, pa.large_string()), text)  # another spelling of null
        text.validate(full=True)  # nothing else looks at the encoding of a column
        return text
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise UserError(f"{where}, of type {kind}, cannot be written as text: {error}.") from error


def _schema_names(path: Path) -> tuple[str, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if _is_parquet(path):
        return tuple(pq.read_schema(path).names)
    with pa.memory_map(str(path)) as source:
        return tuple(_arrow(source).schema.names)


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _arrow(source: Any) -> Any:
    import pyarrow as pa

    magic = source.read(6)
    source.seek(0)
    return pa.ipc.open_file(source) if magic == b"ARROW1" else pa.ipc.open_stream(source)


@contextmanager
def _field_limit() -> Iterator[None]:
    """The csv module keeps its limit for the whole process, so it is put back."""
    before = csv.field_size_limit(LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _width_reason(width: int, expected: int) -> str:
    return f"{width} columns instead of {expected}"


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
