"""RecBole's atomic files: any data set converted for RecBole, whole or split, with the companions of text models.

NAME.inter and NAME.item are tab-separated text whose header names and types every column:

    user_id:token <tab> item_id:token <tab> rating:float <tab> timestamp:float

The types are token, float, and token_seq and float_seq, whose entries are separated by spaces. MMRec's files are the same
without types. With `benchmark_filename: [train, valid, test]` the events lie in NAME.train.inter, NAME.valid.inter and
NAME.test.inter instead. UniSRec and models that follow it put beside them

    NAME.text         item_id:token <tab> text:token_seq, the text of one item a line
    NAME.item2index   raw id <tab> index, without a header: what the item ids in the .inter files stand for
    NAME.user2index   the same of users

W. X. Zhao et al., RecBole: towards a unified, comprehensive and efficient framework for recommendation, CIKM 2021.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from turborec import recipe
from turborec.data.schema import Lookup, RawTable, RawTables, Text
from turborec.errors import UserError, closest
from turborec.sources._atomic import DERIVED, Columns, chosen_of, columns_of, derived
from turborec.sources._local import HINT, places, plain_or_packed

PARTS = ("train", "valid", "test")


class Config(recipe.Config):
    """The files NAME.*, where NAME is the last part of `name`; nobody keeps such files on the web any more.

    They are looked for in the raw folder, in `name` inside it, and in `name` below TURBOREC_DATA. The columns are called
    as RecBole calls them by default. All columns of NAME.item become attributes, as the text that they are, and so does
    `text` of NAME.text; where there is a NAME.item2index, NAME.text alone describes the items, since only it has raw ids.
    NAME.user is not read: nothing uses it.
    """

    kind: Literal["recbole"] = "recbole"
    name: str = Field(min_length=1)
    benchmark_filename: tuple[str, str, str] | None = None  # of training, validation and test, for the split `labelled`
    user: str = "user_id"
    item: str = "item_id"
    time: str | None = None  # None: timestamp, where there is one
    time_format: Literal["seconds", "milliseconds"] = "seconds"
    order: str | None = None  # the place of an event in its user's history: `position` in what `data export` writes
    value: str | None = None  # None: rating, where there is one
    label: str | None = None  # train, valid and test, or 0, 1 and 2 as MMRec has it
    separator: str = Field("\t", min_length=1)

    @model_validator(mode="after")
    def _one_split(self) -> Self:
        if self.label and self.benchmark_filename:
            raise ValueError("label and benchmark_filename are two ways to say which part an event belongs to: keep one")
        return self

    def download(self, folder: Path) -> None:
        """Look whether the files are there."""
        self._events(folder)

    def parse(self, folder: Path) -> RawTables:
        """Describe the files, compressed by gzip or bzip2 or not."""
        paths = self._events(folder)
        columns, *others = (columns_of(path, self.separator) for path in paths)
        if any(list(other.values()) != list(columns.values()) for other in others):
            raise UserError(f"{', '.join(path.name for path in paths)} must have the same columns in the same order.")
        chosen = self._chosen(columns, paths[0])
        home = paths[0].parent
        lookups = {name: found for name in ("user", "item") if (found := self._indexed(home, name, chosen[name]))}
        events = RawTable(
            paths=paths,
            layout=Text(self.separator, header=True),
            select={name: column for name, column in chosen.items() if name not in (*lookups, *DERIVED)},
            derive=derived(chosen),
            constants={"label": PARTS} if self.benchmark_filename else {},
            lookups=lookups,
        )
        return RawTables(events, self._items(home), time=self.time_format)

    @property
    def _stem(self) -> str:
        return Path(self.name).name

    def _events(self, folder: Path) -> tuple[Path, ...]:
        """The files of events, which lie side by side."""
        names = [f"{self._stem}.{part}.inter" for part in self.benchmark_filename or ()] or [f"{self._stem}.inter"]
        looked = [folder, *places(self.name, folder)]
        for place in looked:
            found = [path for path in (plain_or_packed(place / name) for name in names) if path]
            if len(found) == len(names):
                return tuple(found)
        others = sorted({path.name for place in looked for path in place.glob(f"{self._stem}.*.inter*")})
        hint = f" There are {', '.join(others)}: name their parts in benchmark_filename." if others else f" {HINT}"
        where = " or ".join(map(str, looked))
        raise UserError(f"Expected {' and '.join(names)}, with or without .gz or .bz2, in {where}.{hint}")

    def _chosen(self, columns: Columns, path: Path) -> dict[str, str]:
        """Our names and the columns that have what they mean."""
        if f"{self.item}_list" in columns:
            raise UserError(
                f"{path} has a whole history in each row ({columns[f'{self.item}_list']}), which is not supported: windows "
                f"are laid over the histories here. Write one event a row: user, item and time or order."
            )
        named = {"user": self.user, "item": self.item, "time": self.time, "order": self.order, "value": self.value}
        return chosen_of(named | {"label": self.label}, columns, path)

    def _indexed(self, home: Path, name: str, column: str) -> Lookup | None:
        """What the indices of users or items stand for."""
        path = plain_or_packed(home / f"{self._stem}.{name}2index")
        if path is None:
            return None
        return Lookup(column, RawTable((path,), Text("\t", ("raw", "index")), {"key": "index", "value": "raw"}))

    def _items(self, home: Path) -> RawTable | None:
        described, text = (plain_or_packed(home / f"{self._stem}.{suffix}") for suffix in ("item", "text"))
        indexed = plain_or_packed(home / f"{self._stem}.item2index") is not None
        path = text if text and (indexed or not described) else described
        if path is None:
            return None
        columns = columns_of(path, self.separator)
        if self.item not in columns:
            raise UserError(f"{path} has no column {self.item!r}{closest(self.item, tuple(columns))}, which names the item.")
        select = {"item" if name == self.item else name: column for name, column in columns.items()}
        lookups = {}
        if path == described and indexed and (lookup := self._indexed(home, "item", select.pop("item"))):
            lookups["item"] = lookup
        elif path == described and text:
            told = columns_of(text, self.separator)
            key, value = told.get(self.item), told.get("text")
            if not key or not value:
                raise UserError(f"{text} must have the columns {self.item} and text, got {', '.join(told)}.")
            table = RawTable((text,), Text(self.separator, header=True), {"key": key, "value": value})
            select.pop("text", None)
            lookups["text"] = Lookup(select["item"], table)
        return RawTable((path,), Text(self.separator, header=True), select, lookups=lookups)
