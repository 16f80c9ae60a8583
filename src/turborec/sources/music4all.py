"""Music4All and Music4All-Onion: who listened to which track when, and features of the tracks' sound, lyrics and pictures.

I. A. P. Santana et al., Music4All: a new music database and its applications, IWSSIP 2020.
M. Moscati et al., Music4All-Onion: a large-scale multi-faceted content-centric music recommendation dataset, CIKM 2022.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from turborec import recipe
from turborec.data.schema import FeatureTable, Lookup, RawTable, RawTables, Text
from turborec.errors import UserError, closest
from turborec.sources._atomic import columns_of
from turborec.sources._local import HINT, places, plain_or_packed

TERMS = (
    "Music4All (Santana et al., 2020) and Music4All-Onion (Moscati et al., 2022): for research, under the terms that come "
    "with each; the first is given out on request and must not be passed on."
)
ONION_ADDRESS = "https://zenodo.org/records/6609677"
FETCHED = f"Get it from {ONION_ADDRESS}"
ASKED_FOR = "Ask for it at https://sites.google.com/view/contact4music4all"

GENERATED = "GENERATED.txt"
"""The file whose first line says that the files beside it were generated; it stands on the card in place of the terms."""

LISTENS = {"user": "user_id", "item": "track_id"}
TSV = Text("\t", header=True)  # titles hold stray quotes, so that a quote must be an ordinary character
TEXTS = ("tags_dict",)
"""Files called as those of features are that hold texts instead of numbers."""


@dataclass(frozen=True)
class _Events:
    """A file of events: its name, how to come by it, and what its columns mean."""

    name: str
    obtained: str
    select: Mapping[str, str]


EVENTS = {
    ("onion", "timestamps"): _Events("userid_trackid_timestamp.tsv", FETCHED, {**LISTENS, "time": "timestamp"}),
    ("onion", "counts"): _Events("userid_trackid_count.tsv", FETCHED, {**LISTENS, "value": "count"}),
    ("base", "timestamps"): _Events("listening_history.csv", ASKED_FOR, {"user": "user", "item": "song", "time": "timestamp"}),
}


@dataclass(frozen=True)
class _Described:
    """A file that describes tracks: our attributes and its columns, those whose entries commas separate apart."""

    name: str
    select: Mapping[str, str] = field(default_factory=dict)
    lists: Mapping[str, str] = field(default_factory=dict)

    @property
    def derive(self) -> dict[str, str]:
        """The SQL of the lists, joined by `|` as everybody's are."""
        return {ours: f"replace({theirs}, ',', '|')" for ours, theirs in self.lists.items()}


DESCRIBED = (
    _Described("id_information.csv", {"artist": "artist", "title": "song", "album": "album_name"}),
    _Described("id_genres.csv", lists={"genres": "genres"}),
    _Described("id_tags.csv", lists={"tags": "tags"}),
    _Described("id_lang.csv", {"language": "lang"}),
    _Described("id_metadata.csv", {"year": "release"}),
)


class Config(recipe.Config):
    """The files of one folder, compressed or not; nothing is fetched: for Music4All one must ask, and Onion is large.

    They are looked for in the raw folder, in `folder` inside it, and in `folder` below TURBOREC_DATA. A listen is an event,
    with its time to the second (onion) or the minute (base); with `events: counts` it is a user and a track, without a
    time, and its value says how often. Tracks have artist, title, album, genres, tags, language and year as far as
    Music4All's own files lie there, in whichever layout; what a file does not tell of a track is unknown. `features` names
    Onion's files of numbers, which serve both layouts: `lyrics_bert` or `lyrics_tf-idf` for id_lyrics_tf-idf.tsv, which is
    called lyrics_tf_idf from there on.
    """

    kind: Literal["music4all"] = "music4all"
    layout: Literal["onion", "base"] = "onion"
    events: Literal["timestamps", "counts"] = "timestamps"
    features: tuple[str, ...] = ()
    folder: str = Field("music4all", min_length=1)

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if (self.layout, self.events) not in EVENTS:
            raise ValueError("only the layout onion has counts: layout base goes with `events: timestamps`")
        names = [_plain(name) for name in self.features]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"features names {twice!r} twice")
        return self

    def download(self, folder: Path) -> None:
        """Look whether the files are there."""
        home = self._events(folder).parent
        self._features(home)

    def parse(self, folder: Path) -> RawTables:
        """Describe the events, what is told of the tracks, and the features that are wanted."""
        path = self._events(folder)
        select = EVENTS[self.layout, self.events].select
        return RawTables(
            events=RawTable((path,), TSV, select),
            items=_items(path.parent),
            time="iso",
            features=self._features(path.parent),
            terms=_terms(path.parent),
        )

    def _events(self, folder: Path) -> Path:
        """The file of events, beside which all others lie."""
        wanted = EVENTS[self.layout, self.events]
        looked = list(dict.fromkeys([folder, *places(self.folder, folder)]))
        if found := next(filter(None, (plain_or_packed(place / wanted.name) for place in looked)), None):
            return found
        others = [
            f"{events.name} is there, for data.source.layout={layout} data.source.events={kind}"
            for (layout, kind), events in EVENTS.items()
            if any(plain_or_packed(place / events.name) for place in looked)
        ]
        remedy = "; ".join(others) if others else f"{wanted.obtained} and put its files into one of these"
        where = " or ".join(map(str, looked))
        raise UserError(f"Expected {wanted.name}, compressed or not, in {where}. {remedy}. {HINT}")

    def _features(self, home: Path) -> dict[str, FeatureTable]:
        """The tables that are wanted, by their names."""
        there = _feature_files(home)
        found = {}
        for name in map(_plain, self.features):
            if name in TEXTS:
                raise UserError(f"data.source.features: id_{name} holds texts, which are no features; leave {name!r} out.")
            if name not in there:
                known = closest(name, list(there)) or f"; there is no file id_*.tsv at all, get them from {ONION_ADDRESS}"
                raise UserError(f"data.source.features: {home} has no features {name!r}{known}.")
            found[name] = FeatureTable(there[name])
        return found


def _plain(name: str) -> str:
    """What features are called: as their file, without hyphens."""
    return name.replace("-", "_")


def _feature_files(home: Path) -> dict[str, Path]:
    """The files of numbers by the names of their features; a plain one goes before its compressed copies."""
    found: dict[str, Path] = {}
    for path in sorted(home.glob("id_*.tsv*")):
        named = re.fullmatch(r"id_(.+)\.tsv(\.gz|\.bz2)?", path.name)
        if named and _plain(named[1]) not in TEXTS:
            found.setdefault(_plain(named[1]), path)
    return found


def _items(home: Path) -> RawTable | None:
    """The first file that describes tracks, with what the others tell looked up in them; None where there is none.

    What is looked up and not there is unknown, as the genres of a track without any are.
    """
    there = [(path, told) for told in DESCRIBED if (path := plain_or_packed(home / told.name))]
    if not there:
        return None
    for path, told in there:
        header = columns_of(path, "\t")
        if missing := next((column for column in told.lists.values() if column not in header), None):
            raise UserError(f"{path} has no column {missing!r}{closest(missing, list(header))}: expected it beside id.")
    (path, first), *others = there
    lookups: dict[str, Lookup] = {}
    for other, told in others:
        for ours, theirs in told.select.items():
            lookups[ours] = Lookup("id", RawTable((other,), TSV, {"key": "id", "value": theirs}))
        for ours, sql in told.derive.items():
            lookups[ours] = Lookup("id", RawTable((other,), TSV, {"key": "id"}, derive={"value": sql}))
    return RawTable((path,), TSV, {"item": "id", **first.select}, derive=first.derive, lookups=lookups)


def _terms(home: Path) -> str:
    """Whose data it is; what was generated says so itself."""
    note = home / GENERATED
    if not note.is_file():
        return TERMS
    told = note.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"Generated, not Music4All: {told[0] if told else 'nobody says how'}"
