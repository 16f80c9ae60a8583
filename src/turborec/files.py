"""Files that are whole or not there."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turborec.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = (".parquet", ".csv", ".tsv", ".jsonl")
"""What a table may be written as."""


def from_anywhere(name: str) -> str:
    """The name of something that lies here as an absolute path, so that it is found from other folders; any other as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` under a temporary name, sync it and give it its name; what was there before stays if that fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} was not written: {error.strerror}. Free some space or choose another folder.") from error


def require_writable(path: Path) -> None:
    """Make the folders of a file that is still to be written, and find out now whether it will be possible."""
    there = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Name another file.") from error
    if not there:
        path.unlink()


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def table_writer(path: Path, schema: "pa.Schema") -> "Iterator[Callable[[pa.Table], Any]]":
    """What adds rows of `schema` to a table; the file takes its name only when all of them are written.

    A .tsv has no quotes, as it is read; a UserError where a text would need them.
    """
    from pyarrow import csv, parquet

    if path.suffix not in TABLES:
        raise UserError(f"Expected a file ending in {', '.join(TABLES[:-1])} or {TABLES[-1]}, got {path}.")
    temporary = path.absolute().with_name(f".{path.name}.part")
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            with parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
                yield writer.write_table
        elif path.suffix == ".csv":
            with csv.CSVWriter(temporary, schema) as writer:
                yield writer.write_table
        else:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                if path.suffix == ".jsonl":
                    yield lambda table: file.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in table.to_pylist())
                else:
                    file.write("\t".join(schema.names) + "\n")
                    yield lambda table: file.writelines(_tabbed(table, path))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _tabbed(table: "pa.Table", path: Path) -> Iterator[str]:
    """The rows of a table as lines of text."""
    for row in zip(*(column.to_pylist() for column in table.columns), strict=True):
        texts = ["" if value is None else str(value) for value in row]
        if broken := next((text for text in texts if re.search(r"[\t\r\n]", text)), None):
            raise UserError(
                f"{broken[:200]!r} holds a tab or a line end, which {path.name} cannot: write a .parquet or a .csv."
            )
        yield "\t".join(texts) + "\n"
