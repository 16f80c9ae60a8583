"""The items of a table or a folder with what is to be encoded of them, in bounded memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from turborec.data import rows
from turborec.data.schema import LINE, Columnar, JsonLines, Layout, Text
from turborec.errors import UserError
from turborec.features.plain import joined

C = TypeVar("C", str, bytes)

LAYOUTS: dict[str, Layout] = {
    ".csv": Text(",", header=True, quote='"'),
    ".tsv": Text("\t", header=True),
    **dict.fromkeys((".parquet", ".arrow", ".feather", ".ipc"), Columnar()),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), JsonLines()),
}
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
LARGEST_FILE = 2**28
"""Bytes of a file that is read as an image at all."""


@dataclass(frozen=True)
class Found(Generic[C]):
    """An item as its raw id and its content, which may be empty; or a row or file that tells no item, and why."""

    item: str  # of a broken row its place, such as `line 17`
    content: C
    broken: str = ""


def texts(path: Path, item: str, columns: Sequence[str]) -> Iterator[Found[str]]:
    """The items of a table with the texts of `columns` joined and cleaned (`plain.joined`), in the order of its rows."""
    layout = _layout(path)
    names = rows.column_names(path, layout, [item, *columns])
    for run in rows.runs(path, layout, names, [item, *columns]):
        yield from (Found(f"line {fault.line}", "", fault.reason) for fault in run.faults)
        lines, ids = run.table[LINE].to_pylist(), run.table[item].to_pylist()
        parts = zip(*(run.table[name].to_pylist() for name in columns), strict=True)
        for line, raw, told in zip(lines, ids, parts, strict=True):
            yield _checked(f"line {line}", raw, joined(told))


def images(path: Path, item: str, column: str) -> Iterator[Found[bytes]]:
    """The items of a Parquet or Arrow table with the bytes in `column`; or the files of a folder, whose stems are raw ids."""
    if path.is_dir():
        yield from (_file(file) for file in image_files(path))
        return
    layout = _layout(path)
    if not isinstance(layout, Columnar):
        raise UserError(f"Images are bytes in a .parquet or .arrow table, or files in a folder; got {path}.")
    rows.column_names(path, layout, [item, column])
    line = 0
    for ids, contents in rows.blobs(path, item, column):
        for raw, content in zip(ids, contents, strict=True):
            line += 1
            yield _checked(f"line {line}", raw, content or b"")


def image_files(folder: Path) -> list[Path]:
    """The images in a folder and those below it, in the order of their paths; hidden ones are left out."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES and not p.name.startswith(".") and p.is_file())
    if not found:
        raise UserError(f"There is no image in {folder}: expected files such as 17.jpg, ending in {', '.join(IMAGES)}.")
    return found


def count(path: Path) -> int | None:
    """How many rows or files there are, where that is known before all are read."""
    if path.is_dir():
        return len(image_files(path))
    return rows.row_count(path) if path.suffix.lower() == ".parquet" else None


def _file(path: Path) -> Found[bytes]:
    name = path.name.encode(errors="backslashreplace").decode()  # a name of a file may be no text
    try:
        if path.stat().st_size > LARGEST_FILE:
            return Found(name, b"", f"it has more than {LARGEST_FILE >> 20} MB")
        return _checked(name, path.stem, path.read_bytes())
    except OSError as error:
        return Found(name, b"", f"it cannot be read: {error.strerror}")


def _checked(place: str, raw: str | None, content: C) -> Found[C]:
    """The item, unless its id cannot be one line of a file."""
    if not raw:
        return Found(place, content, "it has no item id")
    if raw.splitlines() != [raw]:
        return Found(place, content, f"its item id {raw[:80]!r} holds a line end")
    try:
        raw.encode()
    except UnicodeEncodeError:
        return Found(place, content, f"its item id {raw[:80]!r} is not UTF-8")
    return Found(raw, content)


def _layout(path: Path) -> Layout:
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if path.is_dir() or suffix not in LAYOUTS:
        raise UserError(f"Expected a table, a file ending in {', '.join(LAYOUTS)}; got {path}.")
    return LAYOUTS[suffix]
