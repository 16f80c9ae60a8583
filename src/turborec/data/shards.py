"""A store's large files cut into shards, and mapped as if they were whole.

A file above the stated size lies as `NAME.00000`, `NAME.00001`, …, of which all but the last are of one size; `cat` makes
of them the file that there would be without. They are mapped side by side into one run of addresses, so an array over
them is an ordinary one: nothing is copied, and no access costs more than in a whole file.
"""

import ctypes
import math
import mmap
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNIT = 2**20
"""Bytes of which shards are multiples, and so of the pages of any machine: a map begins where a page does."""

LONGEST_HEADER = 2**12
"""Bytes that tell the type and the shape of an array, with room to spare."""

_MAP_FIXED = 0x10  # on Linux and macOS; Python has no name for it


def divide(path: Path, size: int) -> None:
    """Cut a file of more than `size` bytes, a multiple of `UNIT`, into shards, with room for one of them beside it."""
    count = -(-path.stat().st_size // size)
    if count < 2:
        return
    with path.open("r+b") as whole:
        for number in reversed(range(1, count)):
            whole.seek(number * size)
            with _shard(path, number).open("wb") as shard:
                shutil.copyfileobj(whole, shard, UNIT)
            whole.truncate(number * size)
    path.rename(_shard(path, 0))


def is_sharded(path: Path) -> bool:
    """Whether the file lies in shards."""
    return not path.exists() and _shard(path, 0).exists()


def mapped(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file in shards, read-only; memory and disk are touched where they are read.

    Raises `OSError` where a shard cannot be mapped, or does not end with a page so that another could follow it.
    """
    shards: list[Path] = []
    while (shard := _shard(path, len(shards))).exists():
        shards.append(shard)
    sizes = [shard.stat().st_size for shard in shards]
    # The map of nothing reserves the addresses, and gives up what lies at them when the last array over it is gone.
    room = mmap.mmap(-1, sum(sizes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    content = np.frombuffer(room, np.uint8)
    system = ctypes.CDLL(None, use_errno=True)
    system.mmap.restype = ctypes.c_void_p
    system.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *3 * [ctypes.c_int], ctypes.c_long]
    address = content.ctypes.data
    for shard, size in zip(shards, sizes, strict=True):
        with shard.open("rb") as file:
            got = system.mmap(address, size, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, file.fileno(), 0)
        if got != address:
            raise OSError(ctypes.get_errno(), "it cannot be mapped", str(shard))
        address += size
    return content


def mapped_array(path: Path) -> NDArray[Any]:
    """The array of a .npy file in shards, as `numpy.load` maps that of a whole one; `ValueError` where it holds none."""
    content = mapped(path)
    with BytesIO(content[:LONGEST_HEADER].tobytes()) as file:
        np.lib.format.read_magic(file)
        shape, _, kind = np.lib.format.read_array_header_1_0(file)
        begin = file.tell()
    return np.frombuffer(content, kind, math.prod(shape), begin).reshape(shape)


def _shard(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number:05d}")
