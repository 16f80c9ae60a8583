"""Finds raw files that somebody put there: under their names or packed, in the raw folder or in the folder of the data."""

import bz2
import gzip
import os
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import unquote

from turborec.errors import UserError

NULL = "__HIVE_DEFAULT_PARTITION__"
"""What a folder is called by whose rows have nothing in its column."""

PACKED = (".gz", ".bz2")
"""What may follow the name of a compressed file."""

HINT = "A relative path starts at TURBOREC_DATA, or here."


def plain_or_packed(path: Path) -> Path | None:
    """A file under its name or, compressed, with .gz or .bz2 after it."""
    return next((p for p in (path, *(path.with_name(path.name + suffix) for suffix in PACKED)) if p.is_file()), None)


def unpacked_name(path: Path) -> str:
    """What a file is called, compressed or not, without what says that it is."""
    return next((path.name.removesuffix(suffix) for suffix in PACKED if path.name.endswith(suffix)), path.name)


def opened(path: Path) -> BinaryIO:
    """A file's content, unpacked where it begins as a compressed one does."""
    with path.open("rb") as raw:
        begin = raw.read(4)
    if begin[:2] == b"\x1f\x8b":
        return cast("BinaryIO", gzip.open(path))
    return cast("BinaryIO", bz2.open(path)) if begin[:3] == b"BZh" and begin[3:].isdigit() else path.open("rb")


def places(path: str, folder: Path) -> list[Path]:
    """What a path may mean: in the raw folder, then in the one that TURBOREC_DATA names, then in the working directory."""
    data = os.environ.get("TURBOREC_DATA")
    return list(dict.fromkeys([folder / path, *([Path(data) / path] if data else []), Path.cwd() / path]))


def find(path: str, folder: Path) -> Path:
    """The file a path means; a UserError says where it was looked for."""
    looked = places(path, folder)
    for place in looked:
        if place.is_file():
            return place
    hint = "" if Path(path).is_absolute() else f" {HINT}"
    raise UserError(f"There is no file {path}; looked for {' or '.join(map(str, looked))}.{hint}")


def below(folder: Path) -> list[Path]:
    """The files of a folder of data, at any depth and in the order of their names; hidden ones are left out, as Spark does."""
    found = [path for path in folder.rglob("*") if path.is_file() and not any(map(_hidden, path.relative_to(folder).parts))]
    if not found:
        raise UserError(f"The folder {folder} holds no files; those whose names begin with a point or a _ do not count.")
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _hidden(name: str) -> bool:
    """What tools keep beside data, such as _SUCCESS and checksums, but not a folder of a column whose name begins so."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def told_by_folders(path: Path, folder: Path) -> dict[str, str]:
    """The columns that the names of folders tell of a file, as in `day=2024-01-01/part-0.parquet`; '' is null."""
    pairs = (part.partition("=") for part in path.relative_to(folder).parts[:-1])
    return {unquote(name): "" if text == NULL else unquote(text) for name, sign, text in pairs if sign}
