"""Files that are whole or not there."""

import os
from pathlib import Path

from turborec.errors import UserError


def write_whole(path: Path, text: str) -> None:
    """Write `text` under a temporary name, sync it and give it its name; what was there before stays if that fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path} was not written: {error.strerror}. Free some space or choose another folder.") from error


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, have reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
