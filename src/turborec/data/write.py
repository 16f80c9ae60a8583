"""The files of a prepared store, streamed out of the engine and sealed with a card.

Letters: U users, E events, V items.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from turborec.data import clean
from turborec.data.split import Ordered, Split
from turborec.data.store import PART_BITS, Ids, Int64, seal_of, sha256
from turborec.errors import UserError
from turborec.files import sync
from turborec.progress import Advance, task

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection as Connection

BATCH = 2**17


def write_events(con: "Connection", folder: Path, labels: Path, ticks: int) -> Ordered:
    """Write offsets, items and times to `folder` and the events' labels to the file `labels`; memory maps of them."""
    lengths = con.sql(clean.LENGTHS).to_arrow_table().column("length").to_numpy()
    offsets: Int64 = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    np.save(folder / "offsets.npy", offsets)
    total = int(offsets[-1])
    targets = [(folder / "items.npy", np.int32), (folder / "times.npy", np.int64), (labels, np.uint8)]
    with ExitStack() as stack, task("Ordering events", total, "events") as advance:
        # Appended and not written through a memory map, which on a full disk kills the process.
        files = [stack.enter_context(path.open("wb")) for path, _ in targets]
        for file, (_, kind) in zip(files, targets, strict=True):
            header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": (total,)}
            np.lib.format.write_array_header_1_0(file, header)
        for batch in con.sql(clean.EVENTS).to_arrow_reader(BATCH):
            for file, (_, kind), column in zip(files, targets, batch.columns, strict=True):
                file.write(column.to_numpy().astype(kind).tobytes())
            advance(batch.num_rows)
    times, groups = (np.load(path, mmap_mode="r") for path, _ in targets[1:])
    return Ordered(offsets, times, groups, ticks)


def write_ids(con: "Connection", folder: Path) -> None:
    """Write the raw ids of users and items."""
    queries = {"user_ids": clean.USER_IDS, "item_ids": clean.ITEM_IDS}
    with task("Writing ids", unit="ids") as advance:
        for name, query in queries.items():
            Ids.write(folder / name, _ids(con, query, advance))


def _ids(con: "Connection", query: str, advance: Advance) -> Iterator[bytes]:
    for batch in con.sql(query).to_arrow_reader(BATCH):
        for text in batch.column("id"):
            yield text.as_buffer().to_pybytes()
        advance(batch.num_rows)


def write_attributes(con: "Connection", names: Sequence[str], path: Path) -> None:
    """Write the items' attributes as Parquet."""
    import pyarrow.parquet as pq

    reader = con.sql(clean.attributes_query(names)).to_arrow_reader(BATCH)
    with pq.ParquetWriter(path, reader.schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch)


def write_cuts(folder: Path, split: Split, events: Ordered) -> dict[str, int]:
    """Write where each user's parts begin; how many users take part in each."""
    cuts, parts = split.cut(events)
    taking_part: dict[str, int] = {name: int(np.count_nonzero(parts & bit)) for name, bit in PART_BITS.items()}
    for name, users in taking_part.items():
        if not users:
            longest = int(np.diff(events.offsets).max())
            raise UserError(
                f"No user takes part in {name} under the split {split.kind}: a user needs events both before and in "
                f"the part, and the {len(parts):,} histories here have {longest} events at most. Choose another split "
                f"or drop fewer events."
            )
    np.save(folder / "cuts.npy", cuts)
    np.save(folder / "parts.npy", parts)
    return taking_part


def seal(folder: Path, card: dict[str, Any]) -> None:
    """Write the card with the size and SHA-256 of every file and of itself, and force all of it to the disk."""
    paths = sorted(folder.iterdir())
    facts = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths}
    whole = {**card, "files": facts}
    text = json.dumps({**whole, "seal": seal_of(whole)}, indent=2, ensure_ascii=False)
    (folder / "card.json").write_text(text + "\n", encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        sync(path)
