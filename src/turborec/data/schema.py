"""The raw tables a source hands over: where their files lie, how they are laid out, what their columns mean.

A source describes; `prepare` reads. So no source needs memory, and every row of every source is checked the same way.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from os.path import commonpath
from pathlib import Path
from typing import Literal

TimeFormat = Literal["auto", "seconds", "milliseconds", "iso"]
"""How times are written: whole numbers since 1970, or ISO 8601 (UTC where no zone is named); auto: see the first rows."""

TICKS: dict[TimeFormat, int] = {"seconds": 1, "milliseconds": 1000, "iso": 1000}
"""How many of the numbers a store keeps make a second, by how its times were written. What is finer is cut off."""


def moment(text: str) -> datetime:
    """A date or a time as people write it, in ISO 8601, of UTC where it names no zone; a ValueError where it is none."""
    found = datetime.fromisoformat(text)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


BY_PLACE = "by place in the files"
"""What a card says of histories that nothing but their files orders."""

UNKNOWN_TIME = -(2**63)
"""The time of an event whose time nobody knows. Never zero: zero is the first of January 1970."""


@dataclass(frozen=True)
class Text:
    """A delimited text file. `columns` names the fields in file order; a header must agree with them."""

    delimiter: str
    columns: tuple[str, ...] | None = None  # None: take the names from the header
    header: bool = False
    quote: str = ""  # '' : a quote is an ordinary character
    encoding: Literal["utf-8", "latin-1"] = "utf-8"


@dataclass(frozen=True)
class Columnar:
    """Parquet or Arrow (IPC) files, told apart by their first bytes."""


@dataclass(frozen=True)
class JsonLines:
    """Objects, one a line; a key that is missing, twice there (the last counts) or of another type is no fault.

    Values become text: whole floats without a point, lists joined by `|`, and nothing where there is an object.
    """

    columns: tuple[str, ...] | None = None  # the keys there may be; None: those of the first objects
    syntax: Literal["json", "python"] = "json"  # python: literals as Python prints them, such as {'price': None}
    rows: str | None = None  # a key whose list holds the rows, as objects; they have the keys of their line besides


@dataclass(frozen=True)
class Listed:
    """Text without quotes some of whose columns hold lists: each entry is a row, with the columns of its line besides.

    Their columns are LIST, the name of the column that an entry is from; ENTRY, its text; and PLACE, its number in the list,
    from 0 on. A line whose lists are empty has no row. Of lines that have the same in the columns `once`, the first of which
    is one of `lists`, that list counts once, in whichever file it stands first. Of each file the `first` lines are read.
    """

    text: Text
    lists: tuple[str, ...]
    separator: str = " "
    once: tuple[str, ...] = ()
    first: int | None = None  # None: all of them


@dataclass(frozen=True)
class JsonObject:
    """One JSON object. Where its values are objects, each key is a row of KEY and those `columns`.

    Else values are texts, numbers or lists of them: each entry is a row of KEY, ENTRY and PLACE, its number from 0 on.
    """

    columns: tuple[str, ...] = ()


LIST, ENTRY, PLACE = "list of the entry", "entry", "place of the entry"
"""The columns that `Listed` rows have besides those of their line."""

LINE = "line of the row"
"""The column that holds each row's line (text) or number (columnar), from 1; to SQL with `FILE_STEP` times its file's place."""

FILE_STEP = 2**40

KEY = "key of the object"
"""The column that all rows of a `JsonObject` have."""

Layout = Text | Columnar | JsonLines | Listed | JsonObject


@dataclass(frozen=True)
class RawTable:
    """Files of one layout. `select` maps our column names to names of the file's columns."""

    paths: tuple[Path, ...]
    layout: Layout
    select: Mapping[str, str]
    where: str | None = None  # an SQL condition on the file's columns (all text); other rows are left out unvalidated
    derive: Mapping[str, str] = field(default_factory=dict)  # our name -> SQL expression over the file's columns (all text)
    constants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # our name -> what all rows of each file have
    lookups: Mapping[str, "Lookup"] = field(default_factory=dict)  # our name -> where its text is looked up

    @property
    def names(self) -> list[str]:
        """What its files are called by: the path below the folder that they share, where a name alone may be another's too."""
        if len({path.name for path in self.paths}) == len(self.paths):
            return [path.name for path in self.paths]
        shared = commonpath([path.parent for path in self.paths])
        return [path.relative_to(shared).as_posix() for path in self.paths]


@dataclass(frozen=True)
class Lookup:
    """The text that another table tells: it selects `key` and `value`, and our file's `column` holds the key.

    The first of several values of a key counts. A user or an item whose key is not there is a bad row.
    """

    column: str
    table: RawTable


FEATURE_NAME = "[a-z][a-z0-9_]*"
"""What a feature table may be called."""


@dataclass(frozen=True)
class FeatureTable:
    """Numbers that describe the items, a row of them each: of an image, a text, a sound.

    A `.npy` file holds an array [rows, width] of float16, float32 or float64; row r is the item whose raw id is line r of
    `ids`, which has as many lines, or `r` itself, from 0 on, where there is no such file: then every item must have its row.
    A `.tsv` or `.csv`, with `.gz` or `.bz2` after it or not, has a header and the raw id first in every row, then the numbers.

    An item without a row has no such features; what is in a row must all be finite, and the rows of what is not among the
    items are skipped.
    """

    path: Path
    ids: Path | None = None  # of a .npy: raw item ids, one a line

    @property
    def files(self) -> tuple[Path, ...]:
        """Its file, and that of the ids where there is one."""
        return (self.path,) if self.ids is None else (self.path, self.ids)


@dataclass(frozen=True)
class RawTables:
    """What a source parses to.

    `events` selects `user`, `item` and any of `time`, `order`, `value`, `kind`, `label` (train, valid or test). `order`
    is the place of an event in its user's history, for data whose times are unknown or too coarse.
    `items` selects `item` and any attributes, kept as text. `impressions` selects `user`, `item`, `time` and `clicked`: what
    was shown to somebody, each line of a file once. `time` says how the time columns are written.
    """

    events: RawTable
    items: RawTable | None = None
    time: TimeFormat = "seconds"
    features: Mapping[str, FeatureTable] = field(default_factory=dict)  # by name, such as image, text or audio
    terms: str = ""  # one line: whose data it is and what may be done with it
    impressions: RawTable | None = None
