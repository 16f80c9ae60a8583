"""The zip archive that `torch.save` writes: its pickle, and the storages that its tensors are views of, within their bounds.

Layout: torch/serialization.py of PyTorch 2.
"""

import math
import zipfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LARGEST_PICKLE = 2**28
"""Bytes of a checkpoint's pickle, which holds everything but the numbers of its tensors."""

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_LATER_DTYPES = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
"""Those that have no storage of their own: their tensors name them."""


class RefusedError(ValueError):
    """Why a file is not read, in words that follow the file's name."""


@dataclass(frozen=True)
class Name:
    """A class, a function or another object that a pickle refers to. It was not looked up."""

    path: str  # with dots, such as numpy.dtype


@dataclass(frozen=True)
class Storage:
    """Numbers that tensors are views of."""

    numbers: Tensor  # one-dimensional
    untyped: bool = False  # bytes whose tensors say what they mean


class Archive:
    """The members of a checkpoint's archive."""

    def __init__(self, file: zipfile.ZipFile, size: int) -> None:
        """`size` is that of the file in bytes: all that is read together may not be more."""
        self._file, self._left = file, size
        self._read: dict[str, bytearray] = {}
        self._storages: dict[tuple[str, str], Storage] = {}
        found = [name for name in file.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1:
            raise RefusedError(f"its archive holds {len(found)} files <name>/data.pkl, and not one")
        self._root = found[0].removesuffix("data.pkl")
        if f"{self._root}byteorder" in file.namelist() and self._member("byteorder") != b"little":
            raise RefusedError("it was written on a machine with the other order of bytes (big-endian)")

    def pickle(self) -> bytes:
        """The pickle, which refers to the storages."""
        return bytes(self._member("data.pkl", LARGEST_PICKLE))

    def storage(self, identity: Any) -> Storage:
        """What a persistent id stands for: ('storage', its type, its file, its device, how many numbers)."""
        if not (isinstance(identity, tuple) and len(identity) == 5 and identity[0] == "storage"):
            raise RefusedError("it refers to something outside of it that is no storage of a tensor")
        _, kind, key, _, count = identity
        if not (isinstance(kind, Name) and isinstance(key, str) and key.isalnum() and _is_size(count)):
            raise RefusedError("it refers to a storage in a form that torch.save does not write")
        if (known := self._storages.get((key, kind.path))) is not None and len(known.numbers) == count:
            return known
        untyped = kind.path in ("torch.storage.UntypedStorage", "torch.UntypedStorage")
        dtype = torch.uint8 if untyped else _DTYPES.get(kind.path.removeprefix("torch."))
        if dtype is None:
            raise RefusedError(f"it holds numbers of a kind that is not supported ({kind.path[:80]})")
        data = self._member(f"data/{key}")
        if count * dtype.itemsize != len(data):
            raise RefusedError(f"storage {key[:20]} has {len(data):,} bytes, and not {count:,} times {dtype.itemsize}")
        if dtype == torch.bool and data.strip(b"\0\1"):
            raise RefusedError(f"storage {key[:20]} holds truth values that are neither 0 nor 1")
        numbers = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._storages.setdefault((key, kind.path), Storage(numbers, untyped))

    def _member(self, name: str, largest: int | None = None) -> bytearray:
        """The bytes of a member, which must be stored as it is."""
        if name not in self._read:
            try:
                info = self._file.getinfo(self._root + name)
            except KeyError as error:
                raise RefusedError(f"{name[:40]!r} is missing from its archive") from error
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise RefusedError(f"{name!r} is compressed in its archive, which torch.save never does")
            if info.file_size > self._left:
                raise RefusedError("its archive says that it holds more than the file is large")
            if largest is not None and info.file_size > largest:
                raise RefusedError(f"its {name} has {info.file_size:,} bytes, more than {largest:,}")
            self._left -= info.file_size
            self._read[name] = bytearray(self._file.read(info))
        return self._read[name]


def tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A view of a storage that does not reach beyond it, and has no more elements than it."""
    if not isinstance(storage, Storage) or not (isinstance(size, tuple) and isinstance(stride, tuple)):
        raise RefusedError("it holds a tensor that is not made as torch.save makes one")
    senseless = len(size) != len(stride) or len(size) > 64 or not all(map(_is_size, (offset, *size, *stride)))
    if senseless or math.prod(max(1, n) for n in size) >= 2**48:
        raise RefusedError("it holds a tensor whose shape makes no sense")
    numbers, held = storage.numbers, len(storage.numbers)
    if 0 in size:
        return torch.empty(size, dtype=numbers.dtype)
    if math.prod(size) > held or offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= held:
        raise RefusedError(f"it holds a tensor that reaches beyond the {held:,} numbers of its storage")
    return numbers.as_strided(size, stride, offset)


def tensor_of_dtype(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """Such a view that says itself what the bytes of its storage mean: `rest` are gradient, hooks, dtype."""
    dtype = rest[2].path.removeprefix("torch.") if len(rest) > 2 and isinstance(rest[2], Name) else ""
    if dtype not in _LATER_DTYPES or not (isinstance(storage, Storage) and storage.untyped):
        raise RefusedError("it holds numbers of a kind that is not supported")
    kind: torch.dtype = getattr(torch, dtype)
    if len(storage.numbers) % kind.itemsize:
        raise RefusedError("it holds a storage that ends within a number")
    return tensor(Storage(storage.numbers.view(kind)), offset, size, stride)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48
