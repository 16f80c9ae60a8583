"""The files of a prepared store, streamed out of the engine and sealed with a card.

Letters: U users, E events, V items.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from turborec.data import clean
from turborec.data.engine import BATCH, Engine, number
from turborec.data.shards import UNIT, divide
from turborec.data.split import Ordered, Split
from turborec.data.store import PART_BITS, Ids, Int64, seal_of, sha256
from turborec.errors import UserError
from turborec.files import sync
from turborec.progress import Advance, task

if TYPE_CHECKING:
    import pyarrow as pa


def write_events(con: Engine, folder: Path, labels: Path, ticks: int, values: bool = False) -> Ordered:
    """Write offsets, items, times and, with `values`, values to `folder` and the events' labels to the file `labels`.

    Memory maps of what a split needs come back. A `UserError` where a value is too large for a float32.
    """
    lengths = np.concatenate([batch.column("length").to_numpy() for batch in con.batches(clean.LENGTHS)])
    offsets: Int64 = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    np.save(folder / "offsets.npy", offsets)
    total = int(offsets[-1])
    targets: list[tuple[Path, Any]] = [(folder / "items.npy", np.int32), (folder / "times.npy", np.int64), (labels, np.uint8)]
    targets += [(folder / "values.npy", np.float32)] * values
    with ExitStack() as stack, task("Ordering events", total, "events") as advance:
        # Appended and not written through a memory map, which on a full disk kills the process.
        files = [stack.enter_context(_appended(path, kind, total)) for path, kind in targets]
        for batch in con.batches(clean.events_query(values)):
            for file, (_, kind), column in zip(files, targets, batch.columns, strict=True):
                file.write(_as(column.to_numpy(), kind).tobytes())
            advance(batch.num_rows)
    times, groups = (np.load(path, mmap_mode="r") for path, _ in targets[1:3])
    return Ordered(offsets, times, groups, ticks)


def _appended(path: Path, kind: Any, total: int) -> BinaryIO:
    """A file that begins as an array of so many numbers, which are still to be written."""
    file = path.open("wb")
    np.lib.format.write_array_header_1_0(file, {"descr": np.dtype(kind).str, "fortran_order": False, "shape": (total,)})
    return file


def write_impressions(con: Engine, folder: Path) -> dict[str, Any]:
    """Write what was shown to whom, by user and time, and what of it was clicked; what the card says of it."""
    con.table("shown", clean.SHOWN)
    total = number(con, "SELECT count(*) FROM shown")
    facts: list[Int64] = []  # of the rows at which impressions begin: number, user, time
    before, done = None, 0
    with ExitStack() as stack, task("Ordering impressions", total, "items shown") as advance:
        items, clicked = (
            stack.enter_context(_appended(folder / f"impressions.{name}.npy", kind, total))
            for name, kind in (("items", np.int32), ("clicked", np.uint8))
        )
        for batch in con.batches("SELECT * FROM shown ORDER BY u, time, position, item, clicked"):
            u, position, time, item, click = (column.to_numpy().astype(np.int64) for column in batch.columns)
            items.write(item.astype(np.int32).tobytes())
            clicked.write(click.astype(np.uint8).tobytes())
            begins = np.flatnonzero(np.diff(position, prepend=-1 if before is None else before))
            facts.append(np.stack([begins + done, u[begins], time[begins]]))
            before, done = position[-1], done + len(item)
            advance(len(item))
    con.drop("shown")
    begins, users, times = np.concatenate([np.zeros((3, 0), np.int64), *facts], axis=1)
    for name, array in (("offsets", np.append(begins, total)), ("users", users), ("times", times)):
        np.save(folder / f"impressions.{name}.npy", array)
    read = number(con, "SELECT count(*) FROM staged_impressions WHERE _reason IS NULL")
    return {"impressions": {"number": len(begins), "items": total, "of_what_is_not_kept": read - total}}


def _as(column: NDArray[Any], kind: Any) -> NDArray[Any]:
    """The numbers in the type that a store keeps; a `UserError` where one of them is too large for a float32."""
    if kind is not np.float32:
        return column.astype(kind)
    if (large := np.abs(column) > np.finfo(kind).max).any():
        raise UserError(
            f"The value {column[large][0]:g} does not fit in the float32 of a store: divide the values, or leave out "
            "data.prepare.values."
        )
    return column.astype(kind)


def write_ids(con: Engine, folder: Path) -> None:
    """Write the raw ids of users and items."""
    queries = {"user_ids": clean.USER_IDS, "item_ids": clean.ITEM_IDS}
    with task("Writing ids", unit="ids") as advance:
        for name, query in queries.items():
            Ids.write(folder / name, _ids(con, query, advance))


def _ids(con: Engine, query: str, advance: Advance) -> Iterator[bytes]:
    for batch in con.batches(query):
        for text in batch.column("id"):
            yield text.as_buffer().to_pybytes()
        advance(batch.num_rows)


def write_attributes(con: Engine, names: Sequence[str], path: Path) -> None:
    """Write the items' attributes as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in ("item", *names)])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for table in _evenly(con.batches(clean.attributes_query(names)), schema):
            writer.write_table(table)


def _evenly(batches: "Iterable[pa.RecordBatch]", schema: "pa.Schema") -> "Iterator[pa.Table]":
    """The rows of batches of any size in tables of `BATCH`, so that a file does not depend on who made them."""
    import pyarrow as pa

    rest = schema.empty_table()
    for batch in batches:
        rest = pa.concat_tables([rest, pa.Table.from_batches([batch]).cast(schema)])
        while len(rest) >= BATCH:
            yield rest.slice(0, BATCH)
            rest = rest.slice(BATCH)
    if len(rest):
        yield rest


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


def seal(folder: Path, card: dict[str, Any], shard_mb: int | None = None) -> None:
    """Write the card with the size and SHA-256 of every file and of itself, and force all of it to the disk.

    Files of more than `shard_mb` MiB are cut into shards before, but for the table of attributes and that of bad rows.
    """
    if shard_mb is not None:
        for path in [path for path in folder.iterdir() if path.suffix in (".npy", ".bytes")]:
            divide(path, shard_mb * UNIT)
    paths = sorted(folder.iterdir())
    facts = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths}
    whole = {**card, "files": facts}
    text = json.dumps({**whole, "seal": seal_of(whole)}, indent=2, ensure_ascii=False)
    (folder / "card.json").write_text(text + "\n", encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        sync(path)
