"""From items to a feature table: read, looked up in the cache, encoded where they are new, written with a card."""

import hashlib
import logging
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from turborec import __version__, progress
from turborec.data.store import sha256
from turborec.errors import UserError
from turborec.features import hashed
from turborec.features.cache import Cache, content_hash, open_cache
from turborec.features.encoders import Encoder, identity_of_hashed
from turborec.features.items import Found, count
from turborec.features.table import Table, new_table

C = TypeVar("C", str, bytes)
Floats = NDArray[np.float32]

MOST_BROKEN = 0.05
"""The share of broken items that a table may lack without anybody having agreed to it."""

NAMED = 20
"""Broken items that are told one by one; the card tells `ON_CARD` of them."""

ON_CARD = 1000
AT_A_TIME_BYTES = 2**26
"""Of contents that are held in memory at once, however many they are."""

log = logging.getLogger("turborec")


@dataclass(frozen=True)
class Task:
    """Where items come from, and what becomes of them."""

    source: Path
    item: str
    columns: tuple[str, ...]  # of a folder of images: none
    out: Path  # without its ending
    home: Path
    skip_broken: bool = False


@dataclass
class Tally:
    """What became of the items."""

    reused: int = 0
    encoded: int = 0  # contents; items that share one are reused after the first
    empty: int = 0
    repeated: int = 0  # rows of an item that was there before
    broken: dict[str, str] = field(default_factory=dict)
    content: Any = field(default_factory=hashlib.sha256)  # over ids and contents in their order

    def breaks(self, item: str, reason: str) -> None:
        """Count a broken item, and name it unless many were."""
        if len(self.broken) < NAMED:
            log.warning("Item %s is left out: %s.", item, reason)
        self.broken[item] = reason


def by_item(task: Task, found: Iterable[Found[C]], encoder: Encoder[C]) -> Tally:
    """Write the table of an encoder that reads each item by itself, and say what became of the items."""
    cache, tally = open_cache(task.home, encoder.identity), Tally()
    with new_table(task.out) as table, progress.task("Encoding", count(task.source), "items") as advance:
        for group in _groups(_sound(found, tally, advance), encoder.at_a_time):
            _encode(group, encoder, cache, table, tally)
        tally.reused = table.rows - tally.encoded
        table.finish(_card(task, tally, table.rows, encoder.identity, encoder.versions))
    return tally


def by_table(task: Task, found: Iterable[Found[str]], width: int) -> Tally:
    """Write the table of `hashed`, which reads all texts before it can tell the vector of one."""
    tally = Tally()
    with (
        TemporaryDirectory(prefix="turborec-") as folder,
        new_table(task.out) as table,
        progress.task("Counting words", count(task.source), "items") as advance,
    ):
        corpus = hashed.Corpus(Path(folder))
        for group in _groups(_sound(found, tally, advance), hashed.ITEMS_AT_A_TIME):
            corpus.add([one.content for one in group])
            table.add_ids(one.item for one in group)
        card = _card(task, tally, table.named, identity_of_hashed(width), {})
        for rows in corpus.vectors(width):
            table.add_rows(rows)
        tally.encoded = table.rows
        table.finish(card)
    return tally


def _sound(found: Iterable[Found[C]], tally: Tally, advance: progress.Advance) -> Iterator[Found[C]]:
    """The items that have content, each once; the others are counted."""
    seen: set[str] = set()
    for one in found:
        advance(1)
        if one.broken:
            tally.breaks(one.item, one.broken)
        elif not one.content:
            tally.empty += 1
        elif one.item in seen:
            tally.repeated += 1
        else:
            seen.add(one.item)
            tally.content.update(f"{one.item}\n".encode() + content_hash(one.content))
            yield one


def _groups(items: Iterable[Found[C]], size: int) -> Iterator[list[Found[C]]]:
    """Items that are held in memory together."""
    group: list[Found[C]] = []
    held = 0
    for one in items:
        group.append(one)
        held += len(one.content)
        if len(group) == size or held >= AT_A_TIME_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def _encode(group: Sequence[Found[C]], encoder: Encoder[C], cache: Cache, table: Table, tally: Tally) -> None:
    """Add the rows of some items to the table, and those that are new to the cache."""
    hashes = [content_hash(one.content) for one in group]
    vectors = cache.find(hashes)
    new = {each: one.content for each, one in zip(hashes, group, strict=True) if each not in vectors}
    wrong: dict[bytes, str] = {}
    if new:
        made, reasons = encoder.encode(list(new.values()))
        finite = np.isfinite(made).all(1)
        reasons = {place: "its vector is not finite" for place in np.flatnonzero(~finite).tolist()} | reasons
        names = list(new)
        wrong = {names[place]: reason for place, reason in reasons.items()}
        right = [place for place in range(len(names)) if place not in reasons]
        cache.add([names[place] for place in right], made[right])
        vectors |= {names[place]: made[place] for place in right}
        tally.encoded += len(right)
    rows = []
    for each, one in zip(hashes, group, strict=True):
        if each in wrong:
            tally.breaks(one.item, wrong[each])
        else:
            table.add_ids([one.item])
            rows.append(vectors[each])
    if rows:
        table.add_rows(np.stack(rows))


def _card(task: Task, tally: Tally, rows: int, identity: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, Any]:
    """What the table is; a UserError where too much of it is broken, or nothing is there."""
    broken = len(tally.broken)
    where = f"{task.source}" + (f", columns {', '.join(task.columns)}" if task.columns else "")
    if broken > MOST_BROKEN * (rows + broken) and not task.skip_broken:
        some = "; ".join(f"{item}: {reason}" for item, reason in list(tally.broken.items())[:5])
        raise UserError(
            f"{broken:,} of {rows + broken:,} items of {where} are broken, more than {MOST_BROKEN:.0%} ({some}). Mend them, or "
            "leave them out with --skip-broken."
        )
    if not rows:
        raise UserError(f"No item of {where} has any content ({tally.empty:,} are empty): name other columns.")
    if tally.repeated:
        log.warning("%s rows tell an item again: the first with content counts.", f"{tally.repeated:,}")
    source: dict[str, Any] = {"name": task.source.name, "content_sha256": tally.content.hexdigest()}
    if task.source.is_file():
        source |= {"bytes": task.source.stat().st_size, "sha256": sha256(task.source)}
    return {
        "encoder": dict(identity),
        "item": task.item,
        "columns": list(task.columns),
        "source": source,
        "items": {"without_content": tally.empty, "repeated": tally.repeated, "broken": broken},
        "broken": dict(list(tally.broken.items())[:ON_CARD]),
        "versions": {"turborec": __version__, "python": platform.python_version(), "numpy": np.__version__, **versions},
    }
