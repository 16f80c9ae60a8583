"""MovieLens: where the files are looked for, how each edition reads, and how an archive becomes them."""

import gzip
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from turborec.data.schema import RawTable
from turborec.errors import UserError
from turborec.sources import movielens
from turborec.sources.movielens import EDITIONS, Config

FIXTURES = Path(__file__).parents[1] / "fixtures" / "movielens"


def derived(table: RawTable, rows: str) -> list[tuple[str | None, ...]]:
    """(genres, year) of the rows, by the expressions of the table."""
    import duckdb

    query = f"SELECT {table.derive['genres']}, {table.derive['year']} FROM ({rows})"
    return duckdb.connect().execute(query).fetchall()


@pytest.mark.parametrize(
    ("title", "year"),
    [
        ("Toy Story (1995)", "1995"),
        ("Babylon 5", None),
        ("2001: A Space Odyssey (1968)", "1968"),
        ("1984 (Nineteen Eighty-Four) (1984)", "1984"),
        ("Carrie (1976) (V)", "1976"),
        ("Death Note (2006-2007)", None),
        ("Café (1995) ", "1995"),
    ],
)
def test_year_is_the_last_one_in_brackets(title: str, year: str | None) -> None:
    items = Config(name="1m").parse(FIXTURES / "1m").items
    assert items and derived(items, f"SELECT '{title}' AS title, 'Drama' AS genres") == [("Drama", year)]


def test_genres_of_100k_come_from_the_flags() -> None:
    items = Config(name="100k").parse(FIXTURES / "100k").items
    flags = {f"flag{i}": "0" for i in range(19)} | {"flag4": "1", "flag10": "1"}
    row = ", ".join(f"'{value}' AS {name}" for name, value in flags.items())
    assert items and derived(items, f"SELECT 'A (1990)' AS title, {row}") == [("Children's|Film-Noir", "1990")]


def test_missing_genres_are_null() -> None:
    flags = ", ".join(f"'{int(i == 0)}' AS flag{i}" for i in range(19))
    for name, row in (("100k", flags), ("10m", "'(no genres listed)' AS genres")):
        items = Config(name=name).parse(FIXTURES / name).items
        assert items and derived(items, f"SELECT 'A' AS title, {row}") == [(None, None)]


@pytest.mark.parametrize("name", EDITIONS)
def test_files_lie_in_the_folder_or_in_the_archives_folder_packed_or_not(name: str, tmp_path: Path) -> None:
    edition = EDITIONS[name]
    nested = tmp_path / edition.folder
    nested.mkdir()
    for place in (nested, tmp_path):
        for suffix in (".gz", ""):
            for file in (edition.files.ratings, edition.files.movies):
                (place / (file + suffix)).write_bytes(b"x")
    tables = Config(name=name).parse(tmp_path)
    assert tables.events.paths == (nested / edition.files.ratings,)
    (nested / edition.files.ratings).unlink()
    assert Config(name=name).parse(tmp_path).events.paths == (nested / f"{edition.files.ratings}.gz",)
    (nested / f"{edition.files.ratings}.gz").unlink()
    assert Config(name=name).parse(tmp_path).events.paths == (tmp_path / edition.files.ratings,)


def test_incomplete_folder_is_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat.gz").write_bytes(gzip.compress(b"1::1::5::1\n"))
    with pytest.raises(UserError, match=r"MovieLens 1m is ratings\.dat and movies\.dat.*ml-1m or both in"):
        Config(name="1m").parse(tmp_path)


def archive(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive in the layout of ml-1m.zip, known to the source in its place."""
    with zipfile.ZipFile(path, "w") as opened:
        for name in ("README", "movies.dat", "ratings.dat", "users.dat"):
            opened.writestr(f"ml-1m/{name}", name)
    facts = {"size": path.stat().st_size, "sha256": sha256(path.read_bytes()).hexdigest()}
    edition = movielens._Edition(movielens.LATIN, "ml-1m", **facts)
    monkeypatch.setitem(movielens.EDITIONS, "1m", edition)
    return path


def test_archive_in_the_folder_is_unpacked_without_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(tmp_path / "ml-1m.zip", monkeypatch)
    Config(name="1m", address="http://127.0.0.1:9/ml-1m.zip").download(tmp_path)
    assert (tmp_path / "ml-1m" / "ratings.dat").read_text() == "ratings.dat"
    assert not (tmp_path / "ml-1m" / "users.dat").exists()


def test_given_address_is_used_and_terms_are_shown_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(name="1m", address=archive(tmp_path / "copy.zip", monkeypatch).as_uri())
    config.download(tmp_path / "raw")
    config.download(tmp_path / "raw")
    assert config.parse(tmp_path / "raw").events.paths == (tmp_path / "raw" / "ml-1m" / "ratings.dat",)
    assert capsys.readouterr().err.count("Terms of use: MovieLens") == 1


def test_another_archive_at_the_address_is_refused(tmp_path: Path) -> None:
    (tmp_path / "copy.zip").write_bytes(b"PK another")
    with pytest.raises(UserError, match="gave another file: it has 10 bytes, not 5,917,549"):
        Config(name="1m", address=(tmp_path / "copy.zip").as_uri()).download(tmp_path / "raw")


@pytest.mark.data
@pytest.mark.parametrize(
    ("folder", "name", "users", "items", "events"),
    [("ml-100k", "100k", 943, 1682, 100_000), ("ml-latest-small", "latest-small", 610, 9724, 100_836)],
)
def test_original_files_prepare_to_the_published_counts(
    data_folder: Path, tmp_path: Path, folder: str, name: str, users: int, items: int, events: int
) -> None:
    from turborec.data.prepare import Prepare, prepare
    from turborec.data.split import LeaveOneOut
    from turborec.data.store import open_store

    tables = Config(name=name).parse(data_folder / folder / "raw")
    store = open_store(prepare(tables, {}, Prepare(bad_rows=0), LeaveOneOut(), tmp_path))
    assert (store.num_users, store.num_items, len(store.histories.items)) == (users, items, events)
