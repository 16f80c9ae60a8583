"""A store written as the files that RecFormer's own code reads; `sources/recformer.py` says how they are laid out."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from turborec.data import attributes
from turborec.data.export import blocks_of_users
from turborec.data.store import Part, Store
from turborec.errors import UserError
from turborec.progress import task

FILES: dict[Part, str] = {"train": "train", "validation": "val", "test": "test"}


def export_recformer(store: Store, folder: Path) -> int:
    """Write the six files into a new folder; how many events there were.

    Users and items are numbered from 0 on, as the store has them; a user without events in a part is not in its file.
    """
    names = attributes.columns(store)
    if not names:
        raise UserError(f"The store {store.folder} tells nothing of its items, and RecFormer reads nothing else of them.")
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise UserError(f"{folder} is there already: name a new folder.") from error
    try:
        written = sum(_write_part(store, part, folder / f"{name}.json") for part, name in FILES.items())
        for name, ids in (("umap", store.user_ids), ("smap", store.item_ids)):
            _write(folder / f"{name}.json", ((raw, row) for row, raw in enumerate(ids.raw(range(len(ids))))))
        texts = zip(*(attributes.texts(store, name) for name in names), strict=True)
        told = ({name: text for name, text in zip(names, row, strict=True) if text} for row in texts)
        _write(folder / "meta_data.json", zip(store.item_ids.raw(range(store.num_items)), told, strict=True))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return written


def _write_part(store: Store, part: Part, path: Path) -> int:
    taking_part = set(store.users_of(part).tolist())
    written = 0

    def rows() -> Iterator[tuple[str, list[int]]]:
        nonlocal written
        with task(f"Writing {path.name}", store.num_users, "users") as advance:
            for users in blocks_of_users(store):
                for user, begin, end in zip(users.tolist(), *(side.tolist() for side in store.span(part, users)), strict=True):
                    if user in taking_part and end > begin:
                        written += end - begin
                        yield str(user), (store.histories.items[begin:end].astype(np.int64) - 1).tolist()
                advance(len(users))

    _write(path, rows())
    return written


def _write(path: Path, entries: Iterable[tuple[str, Any]]) -> None:
    """One object, an entry a line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("{")
        for number, (key, value) in enumerate(entries):
            file.write(("," if number else "") + f"\n{json.dumps(key)}: {json.dumps(value)}")
        file.write("\n}\n")
