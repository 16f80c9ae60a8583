"""Small real stores on disk from Python lists, for any test that needs one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from turborec.data.batch import DataSpec, ItemTokens
from turborec.data.pairs import interactions
from turborec.data.schema import UNKNOWN_TIME
from turborec.data.store import FORMAT, Ids, Store, open_store, sha256


def store_of(
    folder: Path,
    histories: Sequence[Sequence[int]],
    items: int | None = None,
    times: Sequence[Sequence[int]] | None = None,
    cuts: Sequence[tuple[int, int]] | None = None,
    parts: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    told: Mapping[str, Sequence[str | None]] | None = None,
) -> Store:
    """The store whose user u has the item ids `histories[u]` (1..V), oldest first; `folder` must be new or empty.

    `items`: V, by default the greatest id. `times`: by default unknown. `cuts`: where each user's validation and test
    parts begin, counted from the start of the history; by default the last event is the test part and the one before
    it the validation part, and a history of fewer than three events is training alone. `parts`: the bits of
    `parts.npy`; by default every part that has an event. Raw ids are `user_id(u)` and `item_id(i)`, or
    `names` of the items, in byte order. `told`: attributes of the items, a text for each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lengths = np.asarray([len(history) for history in histories], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    flat = np.asarray([item for history in histories for item in history], dtype=np.int32)
    if cuts is None:
        cuts = [(n - 2, n - 1) if n >= 3 else (n, n) for n in lengths.tolist()]
    begin = np.asarray(cuts, dtype=np.int64).reshape(-1, 2)
    assert (begin[:, 0] <= begin[:, 1]).all() and (begin[:, 1] <= lengths).all(), "cuts must lie in their history"
    if parts is None:
        parts = ((begin[:, 0] > 0) * 1 + (begin[:, 1] > begin[:, 0]) * 2 + (lengths > begin[:, 1]) * 4).tolist()
    count = items if items is not None else int(flat.max(initial=0))
    flat_times = [UNKNOWN_TIME] * len(flat) if times is None else [time for row in times for time in row]
    arrays = {
        "offsets": offsets,
        "items": flat,
        "times": np.asarray(flat_times, dtype=np.int64),
        "cuts": begin + offsets[:-1, None],
        "parts": np.asarray(parts, dtype=np.uint8),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    Ids.write(folder / "user_ids", [user_id(u).encode() for u in range(len(histories))])
    Ids.write(folder / "item_ids", [name.encode() for name in names or map(item_id, range(1, count + 1))])
    if told is not None:
        pq.write_table(pa.table({name: pa.array(texts, pa.string()) for name, texts in told.items()}), folder / "items.parquet")
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(folder.iterdir())}
    card = {
        "format": FORMAT,
        "key": "0" * 16,
        "counts": {"users": len(histories), "items": count, "events": len(flat)},
        "files": files,
        "times": [min(known), max(known)] if (known := [t for t in flat_times if t != UNKNOWN_TIME]) else None,
    }
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    return open_store(folder)


def described(spec: DataSpec, store: Store, names: Sequence[str] = ("image", "text")) -> DataSpec:
    """The facts with the pairs of a store, and with features drawn for each item: the first of each kind lacks them."""
    generator = torch.Generator().manual_seed(5)
    features = {name: torch.randn(spec.items + 1, 4 + place, generator=generator) for place, name in enumerate(names)}
    for table in features.values():
        table[:2] = float("nan")
    return replace(spec, graph=interactions(store), features=features, texts=texts_of(spec.items))


def texts_of(items: int) -> ItemTokens:
    """Each item by an attribute's name and by its number in base three."""
    digits = [[5 + (item // 3**power) % 3 + 3 * power for power in range(3)] for item in range(1, items + 1)]
    rows = [[4, *own] for own in digits]
    ids = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
    types = torch.tensor([1 + (place > 0) for row in rows for place in range(len(row))], dtype=torch.uint8)
    offsets = torch.tensor([0, 0, *(len(row) for row in rows)]).cumsum(0)
    return ItemTokens(ids, types, offsets, vocabulary=14, begin=0, padding=1, mask=2)


def user_id(row: int) -> str:
    """The raw id of the user at `row`; byte order is row order."""
    return f"user-{row:06d}"


def item_id(item: int) -> str:
    """The raw id of `item` (1..V); byte order is id order."""
    return f"item-{item:06d}"
