"""The prepared store on disk: three memory-mapped arrays, two cut points a user, the raw ids, and a card.

Letters: U users, E events, V items. A user is a row 0..U-1; an item id runs from 1 to V, 0 is padding.

    card.json           what was prepared, from what, by which rules; size and SHA-256 of every file below
    offsets.npy         int64 [U + 1]   user u's events: offsets[u] .. offsets[u + 1] - 1, by (time, tie rule)
    items.npy           int32 [E]
    times.npy           int64 [E]       in the unit of the source; UNKNOWN_TIME where nobody knows
    values.npy          float32 [E]     what the source calls the value, such as a rating; NaN where nobody knows; where
                                        data.prepare.values keeps them
    cuts.npy            int64 [U, 2]    where user u's validation and test parts begin (positions in items)
    parts.npy           uint8 [U]       bits 1, 2, 4: the user takes part in training, validation, test
    user_ids.*, item_ids.*              raw ids as UTF-8 (.bytes) with their ends (.ends.npy), in byte order
    features.NAME.npy   float32 [V + 1, W]  numbers that describe the items, such as image, text or audio; NaN in row 0 and in
                                        those of items without any; where the source or data.features name such tables
    impressions.*.npy   what users were shown at a time, where the source knows: users, times int64 [I] of each, by user and
                        time, and from offsets[i] to offsets[i + 1] its items int32 [C] and whether they were clicked uint8 [C]
    items.parquet       the items' attributes in item order, where the source has any

Any file but the last may lie in shards (`shards.py`): NAME.00000, NAME.00001, …
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from turborec.data import shards
from turborec.data.schema import TICKS
from turborec.errors import UserError

FORMAT = 1
"""Raised when the meaning of a file changes, so that an old store is refused and prepared again."""

Part = Literal["train", "validation", "test"]
PART_BITS: dict[Part, int] = {"train": 1, "validation": 2, "test": 4}
PARTS: tuple[Part, ...] = ("train", "validation", "test")

BLOCK = 2**22
"""Events looked at together where all of them are, which bounds the memory of it."""

ARRAYS = {"offsets": "int64", "items": "int32", "times": "int64", "cuts": "int64", "parts": "uint8"}
"""The arrays of a store and what they hold."""

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


class Ids:
    """Raw ids in byte order, memory-mapped: position <-> text without a dictionary in memory."""

    def __init__(self, path: Path) -> None:
        """`path` without its suffix: the files are `path.bytes` and `path.ends.npy`."""
        self._ends: Int64 = _array(path.with_name(path.name + ".ends.npy"), "int64")
        content = path.with_name(path.name + ".bytes")
        if shards.is_sharded(content):
            self._bytes = shards.mapped(content)
        else:
            # numpy cannot map an empty file: no ids, or one empty id.
            empty = content.stat().st_size == 0
            self._bytes = np.zeros(0, np.uint8) if empty else np.memmap(content, dtype=np.uint8, mode="r")

    def __len__(self) -> int:
        return len(self._ends)

    def raw_bytes(self, row: int) -> bytes:
        """The UTF-8 bytes of the id at `row`."""
        start = int(self._ends[row - 1]) if row else 0
        return self._bytes[start : int(self._ends[row])].tobytes()

    def raw(self, rows: Iterable[int]) -> list[str]:
        """The ids at `rows`."""
        return [self.raw_bytes(int(row)).decode("utf-8") for row in rows]

    def find(self, ids: Iterable[str]) -> Int64:
        """The row of every id, -1 for the unknown ones."""
        order = _Lookup(self)
        found = []
        for text in ids:
            key = text.encode("utf-8", "surrogatepass")  # what is no text is in no store
            row = bisect_left(order, key)
            found.append(row if row < len(self) and self.raw_bytes(row) == key else -1)
        return np.asarray(found, dtype=np.int64)

    @staticmethod
    def write(path: Path, ids: Iterable[bytes]) -> None:
        """Write ids, already in byte order, in bounded memory."""
        ends: list[int] = []
        end = 0
        with path.with_name(path.name + ".bytes").open("wb") as file:
            for text in ids:
                file.write(text)
                end += len(text)
                ends.append(end)
        np.save(path.with_name(path.name + ".ends.npy"), np.asarray(ends, dtype=np.int64))


class _Lookup(Sequence[bytes]):
    """`Ids` as a sequence of bytes, which is what `bisect` searches."""

    def __init__(self, ids: Ids) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: Any) -> Any:
        return self._ids.raw_bytes(row)


@dataclass(frozen=True)
class Histories:
    """Events sorted by user and time, as memory maps or slices of them."""

    offsets: Int64  # [U + 1]
    items: Int32  # [E]
    times: Int64  # [E]

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.offsets) - 1


@dataclass(frozen=True)
class Impressions:
    """What users were shown, by user and time, as memory maps. I impressions, C items shown in all of them."""

    users: Int64  # [I]
    times: Int64  # [I] in the unit of the store
    offsets: Int64  # [I + 1]
    items: Int32  # [C]
    clicked: NDArray[np.uint8]  # [C]


@dataclass(frozen=True)
class Store:
    """An open store; every array is memory-mapped and read-only."""

    folder: Path
    card: dict[str, Any]
    histories: Histories
    cuts: Int64  # [U, 2]
    parts: NDArray[np.uint8]  # [U]

    @property
    def num_users(self) -> int:
        """U."""
        return self.histories.num_users

    @property
    def num_items(self) -> int:
        """V."""
        return int(self.card["counts"]["items"])

    @property
    def ticks(self) -> int:
        """How many of the numbers in `times` make a second."""
        return TICKS["milliseconds" if self.card.get("time_unit") == "milliseconds" else "seconds"]

    @property
    def key(self) -> str:
        """The content hash that names the store."""
        return str(self.card["key"])

    @cached_property
    def values(self) -> NDArray[np.float32] | None:
        """Each event's value, NaN where nobody knows: [E]; None where data.prepare.values did not keep them."""
        path = self.folder / "values.npy"
        return _array(path, "float32") if path.exists() or shards.is_sharded(path) else None

    @cached_property
    def features(self) -> Mapping[str, NDArray[np.float32]]:
        """The items' features by name, each [V + 1, W]: row i is item i, NaN where it has none; row 0 is padding, NaN."""
        found = {name: _array(self.folder / f"features.{name}.npy", "float32") for name in self.card.get("features", {})}
        for name, table in found.items():
            if table.ndim != 2 or len(table) != self.num_items + 1:
                raise UserError(
                    f"The features {name!r} of {self.folder} have the shape {list(table.shape)}, where {self.num_items + 1} "
                    "rows belong. Delete the store and prepare it again."
                )
        return MappingProxyType(found)

    @cached_property
    def impressions(self) -> Impressions | None:
        """What users were shown; None where the source does not know."""
        if "impressions" not in self.card:
            return None
        kinds = {"users": "int64", "times": "int64", "offsets": "int64", "items": "int32", "clicked": "uint8"}
        return Impressions(**{name: _array(self.folder / f"impressions.{name}.npy", kind) for name, kind in kinds.items()})

    @cached_property
    def first_seen(self) -> Int64:
        """The earliest time at which each item was part of an event or an impression: [V + 1].

        Of one that was before any known time `UNKNOWN_TIME`, of one that never was the greatest number there is.
        """
        found = np.full(self.num_items + 1, np.iinfo(np.int64).max)
        shown = self.impressions
        logs: list[tuple[Int32, Int64, Int64 | None]] = [(self.histories.items, self.histories.times, None)]
        logs += [(shown.items, shown.times, shown.offsets)] if shown is not None else []
        for items, times, offsets in logs:
            for begin in range(0, len(items), BLOCK):
                of = np.arange(begin, min(begin + BLOCK, len(items)))
                when = of if offsets is None else np.searchsorted(offsets, of, "right") - 1
                np.minimum.at(found, items[of], times[when])
        return found

    @cached_property
    def user_ids(self) -> Ids:
        """Raw user ids; row u is user u."""
        return Ids(self.folder / "user_ids")

    @cached_property
    def item_ids(self) -> Ids:
        """Raw item ids; row i - 1 is item i."""
        return Ids(self.folder / "item_ids")

    def users_of(self, part: Part) -> Int64:
        """The users that take part in `part`, ascending."""
        return np.flatnonzero(self.parts & PART_BITS[part]).astype(np.int64)

    def span(self, part: Part, users: Int64) -> tuple[Int64, Int64]:
        """Where the users' events of `part` begin and end: two [N] arrays of positions in `histories.items`."""
        if part == "train":
            return self.histories.offsets[users], self.cuts[users, 0]
        if part == "validation":
            return self.cuts[users, 0], self.cuts[users, 1]
        return self.cuts[users, 1], self.histories.offsets[users + 1]

    def training(self) -> Histories:
        """The training part alone, copied out as histories of its own: what counted models see."""
        starts, ends = self.span("train", np.arange(self.num_users))
        lengths = np.where(self.parts & PART_BITS["train"], ends - starts, 0)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        mask = self.within("train", 0, len(self.histories.items))
        return Histories(offsets, self.histories.items[mask], self.histories.times[mask])

    def item_counts(self) -> Int64:
        """How often each item, from 0 on, occurs in the training part: [V + 1], in bounded memory."""
        counts = np.zeros(self.num_items + 1, dtype=np.int64)
        events = len(self.histories.items)
        for begin in range(0, events, BLOCK):
            end = min(begin + BLOCK, events)
            counts += np.bincount(self.histories.items[begin:end][self.within("train", begin, end)], minlength=len(counts))
        return counts

    def within(self, part: Part, begin: int, end: int) -> NDArray[np.bool_]:
        """Which of the events begin..end - 1 are of the part, and of users that take part in it."""
        offsets = self.histories.offsets
        users = np.arange(np.searchsorted(offsets, begin, side="right") - 1, np.searchsorted(offsets, end))
        users = users[self.parts[users] & PART_BITS[part] > 0]
        starts, ends = (np.clip(edges, begin, end) - begin for edges in self.span(part, users))
        change = np.zeros(end - begin + 1, dtype=np.int8)
        np.add.at(change, starts, 1)
        np.add.at(change, ends, -1)
        return np.cumsum(change[:-1], dtype=np.int8).astype(bool)


def open_store(folder: Path, verify: bool = True) -> Store:
    """Open a prepared store; with `verify` every file's SHA-256 is compared with the card first."""
    card = read_card(folder)
    check_files(folder, card, contents=verify)
    arrays = {name: _array(folder / f"{name}.npy", kind) for name, kind in ARRAYS.items()}
    histories = Histories(arrays["offsets"], arrays["items"], arrays["times"])
    return Store(folder, card, histories, arrays["cuts"], arrays["parts"])


def _array(path: Path, kind: str) -> NDArray[Any]:
    """A memory-mapped array of the stated type; numpy executes no pickle that stands in its place."""
    try:
        if shards.is_sharded(path):
            array = shards.mapped_array(path)
        else:
            # As a plain array: every operation on numpy's own class of maps pays for being one.
            array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is no array of numbers ({error}). Delete the store and prepare it again.") from error
    if array.dtype != kind:
        raise UserError(f"{path} holds {array.dtype}, not {kind}. Delete the store and prepare it again.")
    return array


def read_card(folder: Path) -> dict[str, Any]:
    """What the store in `folder` says of itself, unless that cannot be read or is not what was written."""
    try:
        card: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        stated = card.pop("seal", None)
        form, _, _, _ = card["format"], card["key"], card["counts"]["items"], dict(card["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is not a prepared store: card.json cannot be read ({error}).") from error
    if form != FORMAT:
        raise UserError(f"{folder} has store format {form}, this version reads {FORMAT}: prepare it again.")
    if stated is not None and stated != seal_of(card):
        raise UserError(
            f"The store {folder} is damaged: card.json is not what was written. Delete the folder and prepare it again."
        )
    return card


def seal_of(card: Mapping[str, Any]) -> str:
    """The SHA-256 of a card, by which it knows itself."""
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()


def check_files(folder: Path, card: dict[str, Any], contents: bool) -> None:
    """Compare every file with the card by size and, with `contents`, by SHA-256; say which ones differ."""
    faults = []
    for name, fact in card["files"].items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != fact["bytes"]:
            faults.append(f"{name} has {path.stat().st_size} bytes, not {fact['bytes']}")
        elif contents and (got := sha256(path)) != fact["sha256"]:
            faults.append(f"{name} has SHA-256 {got[:12]}…, not {fact['sha256'][:12]}…")
    if faults:
        raise UserError(f"The store {folder} is damaged: {'; '.join(faults)}. Delete the folder and prepare it again.")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
