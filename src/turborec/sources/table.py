"""Any table of events in text, Parquet, Arrow or JSON lines files, with the user saying what its columns mean."""

from hashlib import sha256
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from turborec import recipe
from turborec.data.schema import Columnar, JsonLines, Layout, RawTable, RawTables, Text, TimeFormat
from turborec.errors import UserError
from turborec.sources._fetch import Remote, fetch
from turborec.sources._local import below, find, places, told_by_folders, unpacked_name

DELIMITERS = {".csv": ",", ".tsv": "\t", ".dat": "::"}
COLUMNAR = (".parquet", ".arrow", ".feather", ".ipc")
JSON_LINES = (".jsonl", ".ndjson", ".json")

Paths = str | tuple[str, ...]
"""One path or several of one layout; each absolute, relative, or an address on the web; a folder stands for its files."""


class Config(recipe.Config):
    """Events, and optionally items, whose columns are named here.

    A relative path is looked for in the raw folder, then in the folder that TURBOREC_DATA names, then in the working
    directory. Text is told apart by its suffix (.csv, .tsv, .dat with `::`, .jsonl with an object a
    line), with .gz or .bz2 after it or not. A column may also be told by the folders of a folder
    (`day=2024-01-01/part-0.parquet`).
    """

    kind: Literal["table"] = "table"
    events: Paths
    user: str
    item: str
    time: str | None = None  # None: nobody knows it
    order: str | None = None  # the place of an event in its user's history
    value: str | None = None
    event_kind: str | None = None
    label: str | None = None  # train, valid or test
    items: Paths | None = None
    item_id: str | None = None  # the item column of `items`; None: called as in `events`
    item_attributes: tuple[str, ...] = ()
    time_format: TimeFormat = "auto"
    columns: tuple[str, ...] | None = None  # the fields of events without a header, in file order
    item_columns: tuple[str, ...] | None = None  # the same of items
    delimiter: str | None = Field(default=None, min_length=1)  # None: by suffix
    quote: Literal['"', "'", ""] | None = None  # None: '"' where commas delimit, else none
    encoding: Literal["utf-8", "latin-1"] = "utf-8"

    @model_validator(mode="after")
    def _items_complete(self) -> Self:
        if self.items is None and (self.item_id or self.item_attributes or self.item_columns):
            raise ValueError("item_id, item_attributes and item_columns need items, the table they are about")
        if "item" in self.item_attributes:
            raise ValueError("item_attributes: 'item' is what turborec calls the id, so no attribute may: rename the column")
        if not _listed(self.events):
            raise ValueError("events needs one path at least")
        return self

    def download(self, folder: Path) -> None:
        """Fetch the paths that are addresses on the web; nobody states their checksums, so the first is trusted."""
        for path in (*_listed(self.events), *_listed(self.items)):
            if _on_web(path):
                place = _place(path, folder)
                fetch(Remote(path, place.name), place.parent)

    def parse(self, folder: Path) -> RawTables:
        """Describe the files that are there."""
        wanted = {
            **{"user": self.user, "item": self.item, "time": self.time, "order": self.order},
            **{"value": self.value, "kind": self.event_kind, "label": self.label},
        }
        select = {ours: theirs for ours, theirs in wanted.items() if theirs is not None}
        items = None
        if self.items is not None:
            attributes = {"item": self.item_id or self.item} | {name: name for name in self.item_attributes}
            items = self._table(_listed(self.items), folder, self.item_columns, attributes)
        return RawTables(self._table(_listed(self.events), folder, self.columns, select), items, self.time_format)

    def _table(self, paths: tuple[str, ...], folder: Path, columns: tuple[str, ...] | None, select: dict[str, str]) -> RawTable:
        files = [file for path in paths for file in _files(path, folder)]
        layouts = {self._layout(path, columns): path.name for path, _ in reversed(files)}
        if len(layouts) > 1:
            named = ", ".join(sorted(layouts.values()))
            raise UserError(f"The files of one table share one layout, but {named} are laid out differently.")
        (layout,) = layouts
        told = {ours for ours, theirs in select.items() if all(theirs in beside for _, beside in files)}
        constants = {ours: tuple(beside[select[ours]] for _, beside in files) for ours in select if ours in told}
        plain = {ours: theirs for ours, theirs in select.items() if ours not in told}
        return RawTable(tuple(path for path, _ in files), layout, plain, constants=constants)

    def _layout(self, path: Path, columns: tuple[str, ...] | None) -> Layout:
        suffix = Path(unpacked_name(path)).suffix.lower()
        if suffix in COLUMNAR:
            return Columnar()
        if suffix in JSON_LINES and self.delimiter is None:
            return JsonLines(columns)
        delimiter = self.delimiter or DELIMITERS.get(suffix)
        if delimiter is None:
            raise UserError(
                f"The suffix of {path} does not tell how it is laid out (known: "
                f"{', '.join([*DELIMITERS, *COLUMNAR, *JSON_LINES])}): state its delimiter."
            )
        quote = self.quote if self.quote is not None else '"' if delimiter == "," else ""
        return Text(delimiter, columns, header=columns is None, quote=quote, encoding=self.encoding)


def _listed(paths: Paths | None) -> tuple[str, ...]:
    return (paths,) if isinstance(paths, str) else paths or ()


def _on_web(path: str) -> bool:
    return urlsplit(path).scheme in ("http", "https", "file")


def _place(address: str, folder: Path) -> Path:
    """Where the file at an address is kept: in a folder of its own, since other addresses may end alike."""
    name = Path(urlsplit(address).path).name
    if not name:
        raise UserError(f"The address {address} names no file.")
    return folder / sha256(address.encode()).hexdigest()[:12] / name


def _files(path: str, folder: Path) -> list[tuple[Path, dict[str, str]]]:
    """The files that a path or an address means, each with the columns that its folders tell."""
    if _on_web(path):
        place = _place(path, folder)
        if not place.is_file():
            raise UserError(f"There is no file {path}; looked for {place}.")
        return [(place, {})]
    there = next((place for place in places(path, folder) if place.exists()), None)
    if there is None or not there.is_dir():
        return [(find(path, folder), {})]
    return [(file, told_by_folders(file, there)) for file in below(there)]
