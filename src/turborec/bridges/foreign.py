"""What a checkpoint of another library is turned into, and what the libraries' files share."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turborec.bridges.pickled import Foreign
from turborec.errors import UserError

LARGEST = 2**28
"""Numbers in a table of positions that a file may ask for without holding them."""


@dataclass(frozen=True)
class Table:
    """A table with a row for each item, in the order of the library."""

    rows: Tensor  # [R, D], or [R] numbers
    first: Tensor  # [D] or []: the row before the items in ours, of padding or the mask


@dataclass(frozen=True)
class Imported:
    """A model of another library in our terms. Tables are not yet in the order of a store."""

    model: dict[str, Any]  # the recipe's `model`; what the checkpoint does not say is left out
    max_length: int  # events that the model is shown
    weights: dict[str, Tensor]
    tables: dict[str, Table]
    ids: dict[str, int] | None  # raw id -> row of the tables; None where the checkpoint does not hold them
    padding: int | None = None  # the row that is no item's, where there is one among those that ids may name


@dataclass
class State:
    """The weights of a checkpoint, each of which must be taken."""

    tensors: Mapping[str, Tensor]
    origin: Path
    _taken: set[str] = field(default_factory=set)
    _room: int = 0  # bytes that may still be taken: a few names can be views of one large piece of memory

    def __post_init__(self) -> None:
        """Allow for weights that are tied, and for no more."""
        storages = (t.untyped_storage() for t in self.tensors.values() if isinstance(t, Tensor))
        self._room = 2 * sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def take(self, name: str) -> Tensor:
        """The weight of this name, in float32."""
        tensor = self.tensors.get(name)
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            raise UserError(f"{self.origin} is not of a model that can be imported: its weights lack {name}.")
        self._taken.add(name)
        self._room -= tensor.nbytes
        if self._room < 0:
            raise UserError(f"{self.origin} is not of a model that can be imported: its weights are views of one another.")
        return tensor.float()

    def linear(self, ours: str, theirs: str) -> dict[str, Tensor]:
        """Weight and bias of a linear map or a norm under our name; a convolution over one place is a linear map."""
        weight = self.take(f"{theirs}.weight")
        return {
            f"{ours}.weight": weight.squeeze(-1) if weight.ndim == 3 else weight,
            f"{ours}.bias": self.take(f"{theirs}.bias"),
        }

    def attention(self, ours: str, theirs: str) -> dict[str, Tensor]:
        """The four maps of one of `torch.nn.MultiheadAttention`."""
        weights, biases = self.take(f"{theirs}.in_proj_weight").chunk(3), self.take(f"{theirs}.in_proj_bias").chunk(3)
        parts = {
            f"{ours}.{part}.{kind}": t
            for kind, three in (("weight", weights), ("bias", biases))
            for part, t in zip("qkv", three, strict=True)
        }
        return parts | self.linear(f"{ours}.o", f"{theirs}.out_proj")

    def skip(self, prefix: str) -> None:
        """Leave out the weights whose names begin so: they are others' once more."""
        self._taken.update(name for name in self.tensors if name.startswith(prefix))

    def blocks(self, pattern: str) -> range:
        """How many blocks there are: those whose names begin with `pattern`, with {} for the number."""
        begin, end = pattern.split("{}")
        found = {int(m[1]) for n in self.tensors if (m := re.match(rf"{re.escape(begin)}(\d{{1,6}}){re.escape(end)}", n))}
        return range(len(found))

    def require_all_taken(self) -> None:
        """Refuse a model that has more to it than what was taken."""
        if left := sorted(set(self.tensors) - self._taken):
            raise UserError(
                f"{self.origin} is of a model that has more than items, positions and blocks, and cannot be imported: "
                f"{len(left)} of its weights have no counterpart, such as {left[0]}."
            )


def require(origin: Path, settings: Mapping[str, Any], wanted: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse settings that our models do not know: each that is there must be one of the wanted values."""
    for name, values in wanted.items():
        if name in settings and not any(_equals(settings[name], value) for value in values):
            known = " or ".join(map(repr, values))
            raise UserError(f"{origin} cannot be imported: it has {name}={_told(settings[name])}, and only {known} is known.")


def text(origin: Path, settings: Mapping[str, Any], name: str) -> str:
    """A setting that is a text."""
    value = settings.get(name)
    if not isinstance(value, str):
        raise UserError(f"{origin} cannot be imported: its {name} should be a text, got {_told(value)}.")
    return value


def rate(origin: Path, settings: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """A setting that is a number from 0 to below 1."""
    value = settings.get(name, default)
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise UserError(f"{origin} cannot be imported: its {name} should be a number from 0 to 1, got {_told(value)}.")
    return float(value)


def _equals(value: Any, known: Any) -> bool:
    """Whether a value is a known one, which has at most one entry; others are not looked into: they may be without end."""
    if isinstance(known, dict) and isinstance(value, dict):
        return value.keys() == known.keys() and all(_equals(value[key], known[key]) for key in known)
    return isinstance(value, bool | int | float | str | None) and bool(value == known)


def _told(value: Any) -> str:
    """A value in a few letters, whatever it is."""
    if isinstance(value, bool | float | None) or (isinstance(value, int) and abs(value) < 2**63):
        return repr(value)
    return repr(value[:60]) if isinstance(value, str) else f"a {type(value).__name__}"


def member(value: Any, origin: Path, *names: str) -> Any:
    """What lies below these keys of nested dictionaries; the state of foreign objects is looked into, too."""
    for name in names:
        inner = value.state if isinstance(value, Foreign) else value
        if not isinstance(inner, dict) or name not in inner:
            raise UserError(f"{origin} is not a checkpoint of the library that was named: it lacks {'.'.join(names)}.")
        value = inner[name]
    return value


def whole(origin: Path, settings: Mapping[str, Any], name: str) -> int:
    """A setting that is a whole number from 1 to a million."""
    value = settings.get(name)
    if type(value) is not int or not 0 < value <= 10**6:
        told = _told(value)
        raise UserError(f"{origin} cannot be imported: its {name} should be a whole number from 1 to a million, got {told}.")
    return value


def nowhere(origin: Path, settings: Mapping[str, Any], name: str, width: int) -> Tensor:
    """Positions of a model that has none, for as many places as the setting says."""
    places = whole(origin, settings, name)
    if places * width > LARGEST:
        raise UserError(f"{origin} cannot be imported: {places:,} places of width {width:,} are more than any model's.")
    return torch.zeros(places, width)


def read_ids(path: Path) -> dict[str, int]:
    """The rows of items by raw id, from a JSON object; a UserError where it is anything else."""
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(ids, dict) or any(type(row) is not int for row in ids.values()):
        raise UserError(f'{path} should be a JSON object of raw id and row, such as {{"item-17": 1, "item-4": 2}}.')
    return ids


def texts(array: Any, origin: Path) -> list[str]:
    """Raw ids in a list, or in one of numpy's arrays of objects, whole numbers or text."""
    if isinstance(array, Foreign):
        array = _elements(array)
    if not isinstance(array, list | tuple):
        raise UserError(f"{origin} cannot be imported: its ids of items are stored in a way that is not known.")
    return [_text(value, origin) for value in array]


def _elements(array: Foreign) -> list[Any] | None:
    """The elements of an array of one dimension, None where it is anything else; numpy pickles arrays in two ways."""
    if array.name.endswith(".multiarray._reconstruct") and isinstance(array.state, tuple) and len(array.state) == 5:
        _, shape, kind, _, data = array.state
        return data if isinstance(data, list) else _unpacked(kind, data, shape)
    if array.name.endswith(".numeric._frombuffer") and len(array.arguments) == 4:
        data, kind, shape, _ = array.arguments
        return _unpacked(kind, data, shape)
    return None


def _unpacked(kind: Any, data: Any, shape: Any = (1,)) -> list[Any] | None:
    """Numbers or texts from the bytes of an array, None where they are anything else."""
    import numpy as np

    if not (isinstance(kind, Foreign) and kind.name == "numpy.dtype" and kind.arguments and isinstance(data, bytes)):
        return None
    code, order = kind.arguments[0], kind.state[1] if isinstance(kind.state, tuple) and len(kind.state) > 1 else "|"
    if not isinstance(code, str) or not re.fullmatch(r"[iu][1248]|U[1-9]\d{0,5}", code) or order not in ("<", ">", "|", "="):
        return None
    dtype = np.dtype(f"{order}{code}")
    if not isinstance(shape, tuple) or len(shape) != 1 or shape[0] * dtype.itemsize != len(data):
        return None
    values: list[Any] = np.frombuffer(data, dtype).tolist()
    return values


def _text(value: Any, origin: Path) -> str:
    if isinstance(value, Foreign) and value.name.endswith(".multiarray.scalar") and len(value.arguments) == 2:
        value = (_unpacked(*value.arguments) or [None])[0]
    if type(value) not in (int, str):
        raise UserError(
            f"{origin} cannot be imported: an id of its items is a {type(value).__name__}, not text or a whole number."
        )
    return str(value)
