"""Finds raw files that somebody put there: under their names or packed, in the raw folder or in the folder of the data."""

import os
from pathlib import Path

from turborec.errors import UserError

HINT = "A relative path starts at TURBOREC_DATA, or here."


def plain_or_packed(path: Path) -> Path | None:
    """A file under its name or, compressed, with .gz after it."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


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
