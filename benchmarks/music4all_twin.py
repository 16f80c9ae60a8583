"""A generated twin of Music4All-Onion, for who has no copy: python benchmarks/music4all_twin.py FOLDER [--seed N]...

It has the files, columns and way of writing of the layout `onion` of the source music4all, at any size. None of it is data
of anybody: tracks, listeners and features are drawn from a seed, so a number made with it says how a model does on this
distribution and nothing of music or of people, and whoever shows one must say that it was generated. GENERATED.txt beside
the files says it first, and the source puts its words on the card of every store made from them.

What is drawn: a track is a point in a space of `DEPTH` dimensions, near the centre of its genre. A listener likes two
genres and something of his own, and drifts to another pair over the two years. He listens in sessions, each in a mood near
one of his genres; of `OFFERED` tracks, met by a popularity that falls off like Zipf's, he takes one, the likelier the nearer
it is to his mood. A pair of user and track is drawn once and may be listened to again; every track is listened to by
somebody. Features see the point of a track through an error of their own, larger for pictures than for sound, by a linear
map with some noise: they tell the tastes of those who listen, of tracks as well that nobody has met yet.

Letters: U users, V tracks, S sessions, E interactions (distinct pairs), D dimensions.
"""

import argparse
import bz2
import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]
Float = NDArray[np.float32]
Packing = Literal["bz2", "gz", "none"]

GENRES = (
    *("ambient", "blues", "classical", "country", "dance", "folk", "funk", "gospel", "house", "indie"),
    *("jazz", "latin", "metal", "pop", "punk", "rap", "reggae", "rock", "soul", "techno"),
)
DEPTH = 32
OFFERED = 48  # tracks that a listener chooses from at a time
KEENNESS = 6.0  # how sharply he chooses: the logit of a track is this times its likeness to the mood
ZIPF, SHIFT = 0.9, 20  # popularity falls as (rank + SHIFT)^-ZIPF
LEAST = 5  # interactions of each user
SESSION = 8  # interactions of a session, on the mean
SPREAD = 1.0  # standard deviation of the logarithm of how much a user listens
SITTING = 5400  # seconds of a session
BEGINNING, END = np.datetime64("2018-03-20T00:00:00", "s"), np.datetime64("2020-03-20T00:00:00", "s")
VIEWS = {"resnet": (2048, 1.0), "lyrics_word2vec": (300, 0.7), "ivec256": (256, 0.5)}
"""The features by default: their widths, and how large the error of each is in the space of the tracks."""
OTHER_VIEW = 0.7
BLUR = 0.5  # standard deviation of what the linear map of a feature adds to each number
ROWS = 250_000  # of events written at a time
NUMBERS = 2**21  # of features written at a time
AT_ONCE = 2**13  # choices at a time
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Settings:
    """What decides every byte that is written, but for how it is packed."""

    seed: int = 1
    users: int = 14_000
    tracks: int = 36_000
    interactions: int = 1_000_000
    listens: float = 1.5  # of an interaction, on the mean
    widths: tuple[tuple[str, int], ...] = tuple((name, width) for name, (width, _) in VIEWS.items())

    def random(self, *what: int) -> np.random.Generator:
        """A generator of its own for each thing that is drawn."""
        return np.random.default_rng([self.seed, *what])

    def check(self) -> None:
        """Refuse what cannot be drawn."""
        low, high = self.tracks + LEAST * self.users, self.tracks + self.users * (self.tracks // 2)
        if min(self.users, self.tracks) < 2 * LEAST or not low <= self.interactions <= high:
            raise SystemExit(
                f"{self.users} users and {self.tracks} tracks, ten of each at least, can have {low} to {high} interactions, "
                f"not {self.interactions}."
            )
        if self.listens < 1 or any(width < 1 for _, width in self.widths):
            raise SystemExit("An interaction is listened to once at least, and a feature has a number at least.")


@dataclass(frozen=True)
class World:
    """Tracks: genre [V], point [V, D], popularity [V]. Sessions: user, start in seconds since BEGINNING [S], mood [S, D]."""

    genre: Int
    points: Float
    popularity: NDArray[np.float64]
    session_user: Int
    session_start: Int
    moods: Float
    sizes: Int  # interactions of each session besides those that see to it that every track has one [S]


def world(settings: Settings) -> World:
    """Draw tracks and sessions."""
    random = settings.random(0)
    centres = _unit(random.standard_normal((len(GENRES), DEPTH), dtype=np.float32))
    genre = random.integers(0, len(GENRES), settings.tracks)
    points = np.sqrt(0.6) * centres[genre] + np.sqrt(0.4 / DEPTH) * _normal(random, settings.tracks)
    popularity = 1.0 / (random.permutation(settings.tracks) + SHIFT) ** ZIPF
    counts = _activity(settings, random)
    sessions = -(-counts // SESSION)
    user = np.repeat(np.arange(settings.users), sessions)
    first = np.concatenate([[0], np.cumsum(sessions)[:-1]])
    span = int((END - BEGINNING).astype(np.int64)) - SITTING
    begins = 0.6 * random.random(settings.users)
    lasts = (1 - begins) * (0.4 + 0.6 * random.random(settings.users))
    share = begins[user] + lasts[user] * random.random(len(user))
    moods = _moods(centres, user, share.astype(np.float32), random)
    owner = np.repeat(np.arange(settings.users), counts)
    chosen = first[owner] + (random.random(len(owner)) * sessions[owner]).astype(np.int64)
    sizes = np.bincount(chosen, minlength=len(user))
    start = (share * span).astype(np.int64)
    return World(genre, points.astype(np.float32), popularity / popularity.sum(), user, start, moods, sizes)


def _activity(settings: Settings, random: np.random.Generator) -> Int:
    """How many interactions each user has, besides those that see to it that every track has one: [U]."""
    weights = random.lognormal(0.0, SPREAD, settings.users)
    counts = np.full(settings.users, LEAST)
    while left := settings.interactions - settings.tracks - int(counts.sum()):
        room = np.maximum(settings.tracks // 2 - counts, 0)
        open_to = weights * (room > 0)
        counts += np.minimum(random.multinomial(left, open_to / open_to.sum()), room)
    return counts


def _moods(centres: Float, user: Int, share: Float, random: np.random.Generator) -> Float:
    """The mood of each session [S, D], at `share` of the two years: near one genre of its user, who drifts to another."""
    users = int(user.max()) + 1
    liked = np.argsort(random.random((users, len(GENRES))), axis=1)[:, :3]  # always, at the beginning, at the end
    own = _normal(random, users) / np.sqrt(DEPTH)
    later = random.random(len(user)) < share
    second = np.where(later, liked[user, 2], liked[user, 1])
    focus = np.where(random.random(len(user)) < 0.5, liked[user, 0], second)
    drifting = (1 - share)[:, None] * centres[liked[user, 1]] + share[:, None] * centres[liked[user, 2]]
    taste = centres[liked[user, 0]] + drifting + own[user]
    return _unit(0.4 * taste + 0.8 * centres[focus] + 0.3 * _normal(random, len(user)) / np.float32(np.sqrt(DEPTH)))


def interactions(drawn: World, settings: Settings) -> tuple[Int, Int]:
    """The session and the track of every interaction: [E], [E], no pair of user and track twice."""
    random = settings.random(1)
    tracks = len(drawn.genre)
    everybody = np.cumsum(drawn.sizes / drawn.sizes.sum())
    session = _choices(drawn.points, drawn.moods, everybody, random)
    track = np.arange(tracks)
    missing = np.repeat(np.arange(len(drawn.moods)), drawn.sizes)
    taken = drawn.session_user[session] * tracks + track
    popularity = np.cumsum(drawn.popularity)
    for _ in range(20):
        found = _choices(drawn.moods[missing], drawn.points, popularity, random)
        keys = drawn.session_user[missing] * tracks + found
        place = np.unique(np.concatenate([taken, keys]), return_index=True)[1]
        fresh = np.zeros(len(keys), dtype=bool)
        fresh[place[place >= len(taken)] - len(taken)] = True
        taken = np.concatenate([taken, keys[fresh]])
        session, track = np.concatenate([session, missing[fresh]]), np.concatenate([track, found[fresh]])
        missing = missing[~fresh]
        if not len(missing):
            return session, track
    rest = _unheard(drawn.session_user[missing], taken, tracks, random)
    return np.concatenate([session, missing]), np.concatenate([track, rest])


def _choices(who: Float, among: Float, cumulative: NDArray[np.float64], random: np.random.Generator) -> Int:
    """For each row of `who` [N, D] one of `among` [M, D]: of `OFFERED`, met by their shares, the likelier the more alike."""
    chosen = np.empty(len(who), dtype=np.int64)
    for start in range(0, len(who), AT_ONCE):
        rows = who[start : start + AT_ONCE]
        met = np.searchsorted(cumulative, random.random((len(rows), OFFERED)), side="right").clip(max=len(among) - 1)
        alike = np.matmul(among[met], rows[:, :, None])[:, :, 0]
        logits = KEENNESS * alike + random.gumbel(size=alike.shape)
        chosen[start : start + AT_ONCE] = met[np.arange(len(rows)), logits.argmax(axis=1)]
    return chosen


def _unheard(users: Int, taken: Int, tracks: int, random: np.random.Generator) -> Int:
    """Tracks that are new to these users, for who has listened to nearly all that he likes."""
    found = np.empty(len(users), dtype=np.int64)
    for user in np.unique(users):
        heard = taken[taken // tracks == user] % tracks
        places = np.flatnonzero(users == user)
        found[places] = random.permutation(np.setdiff1d(np.arange(tracks), heard))[: len(places)]
    return found


def listens(drawn: World, session: Int, track: Int, settings: Settings) -> tuple[Int, Int, Int, Int]:
    """User, track and time of every listen, by user and from the latest on, as in Onion; and how many each pair has [E]."""
    random = settings.random(2)
    times = drawn.session_start[session] + random.integers(0, SITTING, len(session))
    user = drawn.session_user[session]
    again = random.geometric(1 / settings.listens, len(session)) - 1
    last = np.zeros(settings.users, dtype=np.int64)
    np.maximum.at(last, user, times)
    place = np.repeat(np.arange(len(session)), again)
    later = times[place] + (random.random(len(place)) ** 2 * (last[user[place]] - times[place])).astype(np.int64)
    users, tracks = np.concatenate([user, user[place]]), np.concatenate([track, track[place]])
    when = np.concatenate([times, later])
    order = np.lexsort((tracks, -when, users))
    return users[order], tracks[order], when[order], again + 1


def write(folder: Path, settings: Settings, packing: Packing = "bz2") -> None:
    """Write all files into `folder`."""
    settings.check()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "GENERATED.txt").write_text(_note(settings), encoding="utf-8")
    drawn = world(settings)
    ids = track_ids(settings)
    session, track = interactions(drawn, settings)
    users, tracks, when, counts = listens(drawn, session, track, settings)
    stamps = BEGINNING + when.astype("timedelta64[s]")
    pair_user = drawn.session_user[session]
    order = np.lexsort((track, pair_user))
    with _table(folder, "userid_trackid_timestamp.tsv", ("user_id", "track_id", "timestamp"), packing) as file:
        _write_rows(file, [users + 1, (ids, tracks), stamps])
    with _table(folder, "userid_trackid_count.tsv", ("user_id", "track_id", "count"), packing) as file:
        _write_rows(file, [pair_user[order] + 1, (ids, track[order]), counts[order]])
    for number, (name, width) in enumerate(settings.widths):
        with _table(folder, f"id_{name}.tsv", ("id", *map(str, range(width))), packing) as file:
            _write_features(file, ids, drawn.points, name, width, settings.random(3, number))
    _write_described(folder, ids, drawn.genre, settings)


def track_ids(settings: Settings) -> NDArray[np.str_]:
    """Ids like Music4All's, sixteen letters and digits each: [V]."""
    digits = settings.random(4).integers(0, len(ALPHABET), (settings.tracks, 16))
    ids = np.array(list(ALPHABET))[digits].view("U16")[:, 0]
    assert len(np.unique(ids)) == len(ids)
    return ids


def _note(settings: Settings) -> str:
    widths = ", ".join(f"{name} {width}" for name, width in settings.widths)
    return (
        f"benchmarks/music4all_twin.py drew this from seed {settings.seed}: {settings.users:,} users, "
        f"{settings.tracks:,} tracks, {settings.interactions:,} interactions, {settings.listens:g} listens of each, "
        f"features {widths}.\n"
        "It is no data of Music4All nor of anybody: say so wherever you show numbers made with it.\n"
    )


@contextmanager
def _table(folder: Path, name: str, columns: Sequence[str], packing: Packing) -> Iterator[IO[bytes]]:
    """A file with its header, that gets its name when it is whole; the same bytes at any time and place."""
    path = folder / (name if packing == "none" else f"{name}.{packing}")
    part = folder / f".{path.name}.part"
    with part.open("wb") as raw:
        file: Any = raw
        if packing == "bz2":
            file = bz2.BZ2File(raw, "wb")
        elif packing == "gz":
            file = gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0)
        file.write(("\t".join(columns) + "\n").encode())
        yield file
        if file is not raw:
            file.close()
    part.replace(path)


def _write_rows(file: IO[bytes], columns: Sequence[Any]) -> None:
    """Write columns of numbers, of times, or of places in a list of texts as a pair (texts, places)."""
    rows = len(columns[0])
    for start in range(0, rows, ROWS):
        part = slice(start, start + ROWS)
        _write_csv(file, [c[0][c[1][part]] if isinstance(c, tuple) else c[part] for c in columns])


def _write_csv(file: IO[bytes], columns: Sequence[Any]) -> None:
    import pyarrow as pa
    import pyarrow.csv

    table = pa.table({str(place): pa.array(column) for place, column in enumerate(columns)})
    options = pa.csv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    sink = pa.BufferOutputStream()
    pa.csv.write_csv(table, sink, options)
    file.write(sink.getvalue())


def _write_features(
    file: IO[bytes], ids: NDArray[np.str_], points: Float, name: str, width: int, random: np.random.Generator
) -> None:
    """Write what a feature tells of every track, to two places: a linear map of its point with the error of the view."""
    _, error = VIEWS.get(name, (0, OTHER_VIEW))
    view = _normal(random, width).T  # [D, width]
    seen = points + np.float32(error / np.sqrt(DEPTH)) * _normal(random, len(points))
    rows = max(NUMBERS // width, 1)
    for start in range(0, len(ids), rows):
        part = slice(start, start + rows)
        blur = np.float32(BLUR) * random.standard_normal((len(ids[part]), width), dtype=np.float32)
        numbers = np.round(seen[part] @ view + blur, 2) + np.float32(0)  # no -0
        _write_csv(file, [ids[part], *numbers.T])


def _write_described(folder: Path, ids: NDArray[np.str_], genre: Int, settings: Settings) -> None:
    """Write id_information.csv and id_genres.csv, as Music4All has them: an artist is of one genre, a few tracks of two."""
    random = settings.random(5)
    artist = genre + len(GENRES) * random.integers(0, max(len(ids) // (8 * len(GENRES)), 1), len(ids))
    album = random.integers(1, 4, len(ids))
    also = random.integers(0, len(GENRES), len(ids))
    two = (random.random(len(ids)) < 0.2) & (also != genre)
    with _table(folder, "id_information.csv", ("id", "artist", "song", "album_name"), "none") as file:
        named = zip(ids, artist, album, strict=True)
        lines = [f"{i}\tArtist {a + 1}\tSong {n}\tAlbum {a + 1}-{k}\n" for n, (i, a, k) in enumerate(named, start=1)]
        file.write("".join(lines).encode())
    with _table(folder, "id_genres.csv", ("id", "genres"), "none") as file:
        of_each = zip(ids, genre, also, two, strict=True)
        file.write("".join(f"{i}\t{GENRES[g]}{f',{GENRES[o]}' if t else ''}\n" for i, g, o, t in of_each).encode())


def _unit(rows: Float) -> Float:
    """Rows of length 1."""
    lengths: Float = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / lengths).astype(np.float32)


def _normal(random: np.random.Generator, rows: int) -> Float:
    """Standard normal [rows, D]."""
    return random.standard_normal((rows, DEPTH), dtype=np.float32)


def _feature(text: str) -> tuple[str, int]:
    """A feature's name and width, of `name:width`."""
    name, _, width = text.partition(":")
    if not name or not width.isdecimal():
        raise argparse.ArgumentTypeError(f"expected NAME:WIDTH such as resnet:2048, got {text!r}")
    return name, int(width)


def main() -> None:
    """Write a twin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    default = Settings()
    for name in ("seed", "users", "tracks", "interactions"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--listens", type=float, default=default.listens, help="of an interaction, on the mean")
    parser.add_argument("--features", nargs="*", metavar="NAME:WIDTH", type=_feature, default=default.widths)
    parser.add_argument("--packing", choices=("bz2", "gz", "none"), default="bz2")
    given = parser.parse_args()
    settings = Settings(given.seed, given.users, given.tracks, given.interactions, given.listens, tuple(given.features))
    write(given.folder, settings, given.packing)


if __name__ == "__main__":
    main()
