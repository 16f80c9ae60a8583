"""A store written as RecBole's atomic files, in bounded memory; `sources/recbole.py` says how they are laid out.

NAME.inter has the raw ids, the time where any is known, and `position`, the place of an event in its user's history. It
is what orders events again: times tie, and RecBole rounds them to float32, that is to 128 seconds nowadays, while with
`TIME_FIELD: position` it keeps the order, too. NAME.item has the attributes; their tabs and line ends become spaces. RecBole
separates the entries of a sequence by blanks, so in a column of `Action|Drama` and the like bars become blanks. It takes a
quote that begins a value for one that the next quote ends, so there quotes become single ones.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import numpy as np

from turborec.data.export import blocks_of_users, rows_of
from turborec.data.schema import UNKNOWN_TIME
from turborec.data.store import PART_BITS, Store
from turborec.errors import UserError
from turborec.progress import task

if TYPE_CHECKING:
    import pyarrow.parquet as pq

BLOCK = 2**22
"""Events looked at together."""

MISSING = {
    *("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
}
"""What pandas, by which RecBole reads, takes for a missing value in a column of text; it then drops the row."""

SUFFIXES = {"train": "train", "validation": "valid", "test": "test"}
"""How RecBole's users call the files of the parts."""


def export_atomic(store: Store, folder: Path, parts: bool) -> int:
    """Write the files into `folder`, which must be new or empty and gives them its name; how many events there were.

    With `parts`, the events of training, validation and test lie in NAME.train.inter, NAME.valid.inter and NAME.test.inter.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and not an empty folder: name another one.")
    if parts:
        _require_parts(store)
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir()
    try:
        _write_events(store, temporary, folder.name, parts)
        if (store.folder / "items.parquet").is_file():
            _write_items(store, temporary / f"{folder.name}.item")
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(store.histories.items)


def _require_parts(store: Store) -> None:
    """What is shown to an evaluation but never trained on would be trained on by a reader of the files."""
    shown = (store.cuts[:, 0] > store.histories.offsets[:-1]) & (store.parts & PART_BITS["train"] == 0)
    if shown.any():
        raise UserError(
            f"{int(shown.sum()):,} users are held out from training altogether, which files of parts cannot say: export "
            f"without parts."
        )


def _write_events(store: Store, folder: Path, name: str, parts: bool) -> None:
    files = {part: f"{name}.{suffix}.inter" for part, suffix in SUFFIXES.items()} if parts else {"": f"{name}.inter"}
    timed = _has_times(store)
    header = ["user_id:token", "item_id:token", *["timestamp:float"] * timed, "position:float"]
    with ExitStack() as stack, task("Exporting", store.num_users, "users") as advance:
        opened = {part: stack.enter_context(_text(folder / file)) for part, file in files.items()}
        for file in opened.values():
            file.write("\t".join(header) + "\n")
        for users in blocks_of_users(store):
            offsets = store.histories.offsets[users[0] : users[-1] + 2]
            position = np.arange(offsets[0], offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
            columns = rows_of(store, users).to_pydict()
            for what in ("user", "item"):
                _require_plain(columns[what], what)
            for user, item, time, part, place in zip(*columns.values(), position.tolist(), strict=True):
                when = ["" if time is None else str(time)] * timed
                opened[part if parts else ""].write("\t".join([user, item, *when, str(place)]) + "\n")
            advance(len(users))


def _write_items(store: Store, path: Path) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetFile(store.folder / "items.parquet") as table, _text(path) as file:
        _, *attributes = table.schema_arrow.names
        for name in attributes:
            if re.search(r"[:\t\r\n]", name):
                raise UserError(
                    f"The attribute {name!r} cannot be a column of RecBole's, whose names end at a colon: rename it."
                )
        columns = [_column(table, name) for name in attributes]
        file.write("\t".join(["item_id:token", *(column.header for column in columns)]) + "\n")
        for batch in table.iter_batches():
            file.writelines("\t".join(row) + "\n" for row in _item_rows(batch.to_pydict(), columns))


@dataclass(frozen=True)
class _Column:
    """An attribute, and how RecBole is to read it."""

    name: str
    sequence: bool  # of words, or of entries
    bars: bool  # between its entries, which are single words

    @property
    def header(self) -> str:
        return f"{self.name}:{'token_seq' if self.sequence else 'token'}"

    def written(self, text: str) -> str:
        """The value as it stands in the file."""
        text = re.sub(r"[\t\r\n]+", " ", text.replace("|", " ") if self.bars else text)
        return text.replace('"', "'") if text.startswith('"') else text


def _column(table: "pq.ParquetFile", name: str) -> _Column:
    """What the values of an attribute look like."""
    blanks = bars = False
    for batch in table.iter_batches(columns=[name]):
        texts = [text for text in batch.column(0).to_pylist() if text]
        blanks = blanks or any(re.search(r"\s", text) for text in texts)
        bars = bars or any("|" in text for text in texts)
    return _Column(name, blanks or bars, bars and not blanks)


def _item_rows(values: dict[str, list[str | None]], columns: list[_Column]) -> Iterator[list[str]]:
    items, *attributes = values.values()
    _require_plain(items, "item")
    for item, *texts in zip(items, *attributes, strict=True):
        yield [item or "", *(column.written(text or "") for column, text in zip(columns, texts, strict=True))]


def _require_plain(ids: list[str | None], what: str) -> None:
    for text in dict.fromkeys(ids):
        if text and (text in MISSING or re.search(r'[\t\r\n]|^"', text)):
            why = "is a word for a missing value" if text in MISSING else "holds a tab or a line end, or begins with a quote"
            raise UserError(f"The {what} {text!r} {why}, which RecBole would misread: export a .parquet.")


def _has_times(store: Store) -> bool:
    times = store.histories.times
    return any((times[first : first + BLOCK] != UNKNOWN_TIME).any() for first in range(0, len(times), BLOCK))


def _text(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", newline="\n")
