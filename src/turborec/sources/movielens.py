"""MovieLens: film ratings collected by GroupLens, in all the editions that are in use for research.

F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from turborec import recipe
from turborec.data.schema import RawTable, RawTables, Text
from turborec.errors import UserError
from turborec.sources._fetch import Remote, fetch, locked, show_terms
from turborec.sources._local import plain_or_packed
from turborec.sources._unpack import unpack

TERMS = (
    "MovieLens data by GroupLens Research, University of Minnesota: for research; no commercial use without their "
    "permission; redistribution only as the README of the edition allows; cite doi:10.1145/2827872."
)
RATING = ("userId", "movieId", "rating", "timestamp")
MOVIE = ("movieId", "title", "genres")
FLAGS = (
    *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""The genres of the 100k edition in the order of its flags, which a flag for `unknown` precedes."""

SOME_GENRES = "nullif(genres, '(no genres listed)')"
# A title ends with the year in brackets, sometimes followed by more: 'Carrie (1976) (V)'.
YEAR = "nullif(regexp_extract(title, '.*[(]([0-9]{4})[)]', 1), '')"


@dataclass(frozen=True)
class _Files:
    """How the two files of an edition are called and laid out."""

    ratings: str
    ratings_layout: Text
    movies: str
    movies_layout: Text
    genres: str  # the SQL expression for the genres, joined by '|'


@dataclass(frozen=True)
class _Edition:
    """An archive: the folder inside, its size and SHA-256 as TensorFlow Datasets states them.

    It does not have 10m and 32m; of these several projects state the same, besides the MD5 that GroupLens publishes.
    """

    files: _Files
    folder: str
    size: int
    sha256: str


def _flagged_genres() -> str:
    escaped = [genre.replace("'", "''") for genre in FLAGS]
    cases = ", ".join(f"CASE WHEN flag{i} = '1' THEN '{genre}' END" for i, genre in enumerate(escaped, start=1))
    return f"nullif(concat_ws('|', {cases}), '')"


FLAT = _Files(
    ratings="u.data",
    ratings_layout=Text("\t", RATING),
    movies="u.item",
    movies_layout=Text(
        "|", ("movieId", "title", "released", "video", "imdb", *(f"flag{i}" for i in range(19))), encoding="latin-1"
    ),
    genres=_flagged_genres(),
)
LATIN = _Files("ratings.dat", Text("::", RATING), "movies.dat", Text("::", MOVIE, encoding="latin-1"), SOME_GENRES)
COLONS = _Files("ratings.dat", Text("::", RATING), "movies.dat", Text("::", MOVIE), SOME_GENRES)
COMMAS = _Files(
    ratings="ratings.csv",
    ratings_layout=Text(",", RATING, header=True),  # it has no quotes, and is read much faster without
    movies="movies.csv",
    movies_layout=Text(",", MOVIE, header=True, quote='"'),
    genres=SOME_GENRES,
)

EDITIONS = {
    "100k": _Edition(FLAT, "ml-100k", 4924029, "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"),
    "1m": _Edition(LATIN, "ml-1m", 5917549, "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"),
    "10m": _Edition(COLONS, "ml-10M100K", 65566137, "813c411ccb6122564edfe752e7f80c4dcc5aa25fa94c93622f6877a7ba252862"),
    "20m": _Edition(COMMAS, "ml-20m", 198702078, "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3"),
    "25m": _Edition(COMMAS, "ml-25m", 261978986, "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa"),
    "32m": _Edition(COMMAS, "ml-32m", 238950008, "e4a68655d7386b8f95f2f2424b2ff975dfdd15ffd59e0d864a14dca43e99d6ee"),
    "latest-small": _Edition(
        COMMAS, "ml-latest-small", 978202, "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436"
    ),
}


class Config(recipe.Config):
    """One edition. Events: ratings with their time in seconds; items: title, genres joined by `|`, and year."""

    kind: Literal["movielens"] = "movielens"
    name: Literal["100k", "1m", "10m", "20m", "25m", "32m", "latest-small"]
    address: str | None = None  # of a copy of the same archive; None: files.grouplens.org

    def download(self, folder: Path) -> None:
        """Unpack the archive, fetched where it does not lie in `folder` yet; nothing where the two files do."""
        edition = EDITIONS[self.name]
        if self._find(folder):
            return
        archive = f"ml-{self.name}.zip"
        address = self.address or f"https://files.grouplens.org/datasets/movielens/{archive}"
        show_terms(TERMS, folder)
        path = fetch(Remote(address, archive, edition.size, edition.sha256), folder)
        with locked(folder):
            if not self._find(folder):
                names = (edition.files.ratings, edition.files.movies)
                unpack(path, [f"{edition.folder}/{name}" for name in names], folder)

    def parse(self, folder: Path) -> RawTables:
        """Describe the two files, in `folder` or in the archive's folder inside it, compressed by gzip or bzip2 or not."""
        edition = EDITIONS[self.name]
        files = edition.files
        found = self._find(folder)
        if found is None:
            raise UserError(
                f"MovieLens {self.name} is {files.ratings} and {files.movies}, with or without .gz; expected both in "
                f"{folder / edition.folder} or both in {folder}."
            )
        ratings, movies = found
        return RawTables(
            events=RawTable(
                paths=(ratings,),
                layout=files.ratings_layout,
                select={"user": "userId", "item": "movieId", "value": "rating", "time": "timestamp"},
            ),
            items=RawTable(
                paths=(movies,),
                layout=files.movies_layout,
                select={"item": "movieId", "title": "title"},
                derive={"genres": files.genres, "year": YEAR},
            ),
            terms=TERMS,
        )

    def _find(self, folder: Path) -> tuple[Path, Path] | None:
        """The ratings and the movies, where both lie side by side."""
        edition = EDITIONS[self.name]
        for place in (folder / edition.folder, folder):
            ratings, movies = (plain_or_packed(place / name) for name in (edition.files.ratings, edition.files.movies))
            if ratings and movies:
                return ratings, movies
        return None
