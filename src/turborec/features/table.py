"""A feature table on disk: `OUT.npy`, `OUT.ids.txt` and, last, its card `OUT.json`; whole or not there."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from turborec.errors import UserError
from turborec.files import require_writable, write_whole

Floats = NDArray[np.float32]

HEADER_BYTES = 128
"""Of a .npy file (version 1.0), so that the number of rows can be put in when it is known."""


class Table:
    """Rows and ids as they come; nothing has its name before `finish`."""

    def __init__(self, rows: BinaryIO, ids: BinaryIO, stem: Path) -> None:
        self._rows, self._ids, self._stem = rows, ids, stem
        self.named = self.rows = self.width = 0

    def add_ids(self, ids: Iterable[str]) -> None:
        """The raw ids of the next rows."""
        for raw in ids:
            self._ids.write(f"{raw}\n".encode())
            self.named += 1

    def add_rows(self, vectors: Floats) -> None:
        """The next rows: [n, D], all finite."""
        if not np.isfinite(vectors).all():
            raise ValueError("a row is not finite")
        if self.rows and vectors.shape[1] != self.width:
            raise ValueError(f"rows of {vectors.shape[1]} numbers after rows of {self.width}")
        self.rows, self.width = self.rows + len(vectors), vectors.shape[1]
        self._rows.write(np.ascontiguousarray(vectors, "<f4").tobytes())

    def finish(self, card: Mapping[str, Any]) -> None:
        """Give the files their names, and write the card, which tells their checksums beside what it is given."""
        if self.named != self.rows:
            raise ValueError(f"{self.named} ids for {self.rows} rows")
        self._rows.seek(0)
        self._rows.write(_header(self.rows, self.width))
        hashes = {}
        for file, path in ((self._rows, matrix_of(self._stem)), (self._ids, ids_of(self._stem))):
            file.flush()
            os.fsync(file.fileno())
            with Path(file.name).open("rb") as written:
                hashes[path.name] = hashlib.file_digest(written, "sha256").hexdigest()
        facts = {"rows": self.rows, "width": self.width, **card, "files": hashes}
        # Whatever cannot be written is found out before the old card goes.
        told = (json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode().decode()
        card_of(self._stem).unlink(missing_ok=True)  # an old card must not stand beside new files
        Path(self._ids.name).replace(ids_of(self._stem))
        Path(self._rows.name).replace(matrix_of(self._stem))
        write_whole(card_of(self._stem), told)


@contextmanager
def new_table(stem: Path) -> Iterator[Table]:
    """A table that is to be written; a UserError where it could not be."""
    for path in (matrix_of(stem), ids_of(stem), card_of(stem)):
        require_writable(path)
    parts = [path.with_name(f".{path.name}.part") for path in (matrix_of(stem), ids_of(stem))]
    try:
        with parts[0].open("wb") as rows, parts[1].open("wb") as ids:
            rows.write(bytes(HEADER_BYTES))
            yield Table(rows, ids, stem)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def stem_of(out: Path, source: Path) -> Path:
    """`OUT`, which may be given as the name of its .npy file; a UserError where it would take the place of the source."""
    stem = out.with_name(out.name.removesuffix(".npy"))
    for path in (matrix_of(stem), ids_of(stem), card_of(stem)):
        if path.exists() and path.samefile(source):
            raise UserError(f"{path}, which is read, would be written over: name another OUT than {out}.")
    return stem


def matrix_of(stem: Path) -> Path:
    """Where the numbers are."""
    return stem.with_name(f"{stem.name}.npy")


def ids_of(stem: Path) -> Path:
    """Where the raw ids are, one a line."""
    return stem.with_name(f"{stem.name}.ids.txt")


def card_of(stem: Path) -> Path:
    """Where it is told what the table is."""
    return stem.with_name(f"{stem.name}.json")


def _header(rows: int, width: int) -> bytes:
    """The header of a .npy file of float32 [rows, width], as `numpy.lib.format` describes it."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}".encode()
    return b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little") + text.ljust(HEADER_BYTES - 11) + b"\n"
