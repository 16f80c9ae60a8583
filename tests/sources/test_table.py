"""Tables of the user's own: the columns they name, the layouts they have, the places they lie in."""

from pathlib import Path

import pytest

from turborec.data.schema import Columnar, JsonLines, RawTables, Text
from turborec.errors import UserError
from turborec.recipe import validate
from turborec.sources.table import Config


def config(**given: object) -> Config:
    return validate(Config, {"events": "e.csv", "user": "u", "item": "i"} | given, "the test")


def parsed(folder: Path, *names: str, **given: object) -> RawTables:
    for name in names:
        (folder / name).write_text("u,i\n")
    return config(**given).parse(folder)


def test_named_columns_are_selected_and_the_others_are_not(tmp_path: Path) -> None:
    tables = parsed(tmp_path, "e.csv", time="t", order="o", value="v", event_kind="k", label="l", time_format="iso")
    expected = {"user": "u", "item": "i", "time": "t", "order": "o", "value": "v", "kind": "k", "label": "l"}
    assert tables.events.select == expected and tables.time == "iso"
    assert parsed(tmp_path, "e.csv").events.select == {"user": "u", "item": "i"}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("e.csv", Text(",", header=True, quote='"')),
        ("e.tsv", Text("\t", header=True)),
        ("e.dat.gz", Text("::", header=True)),
        ("e.CSV.gz", Text(",", header=True, quote='"')),
        ("e.parquet", Columnar()),
        ("e.arrow", Columnar()),
        ("e.feather", Columnar()),
        ("e.jsonl", JsonLines()),
        ("e.json.gz", JsonLines()),
    ],
)
def test_layout_follows_from_the_suffix(tmp_path: Path, name: str, layout: object) -> None:
    assert parsed(tmp_path, name, events=name).events.layout == layout


def test_stated_layout_wins_over_the_suffix(tmp_path: Path) -> None:
    given = {"delimiter": ";", "quote": "'", "encoding": "latin-1", "columns": ["u", "i"]}
    expected = Text(";", ("u", "i"), header=False, quote="'", encoding="latin-1")
    assert parsed(tmp_path, "e.csv", **given).events.layout == expected


def test_unknown_suffix_asks_for_a_delimiter(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"suffix of .*e\.log does not tell.*state its delimiter"):
        parsed(tmp_path, "e.log", events="e.log")
    assert parsed(tmp_path, "e.log", events="e.log", delimiter="|").events.layout == Text("|", header=True)


def test_several_files_make_one_table_if_laid_out_alike(tmp_path: Path) -> None:
    tables = parsed(tmp_path, "a.csv", "b.csv", events=["a.csv", "b.csv"])
    assert tables.events.paths == (tmp_path / "a.csv", tmp_path / "b.csv")
    with pytest.raises(UserError, match=r"share one layout, but a\.csv, c\.tsv are laid out differently"):
        parsed(tmp_path, "a.csv", "c.tsv", events=["a.csv", "c.tsv"])


def test_items_have_columns_of_their_own(tmp_path: Path) -> None:
    given = {"items": "items.tsv", "item_attributes": ["title"], "item_columns": ["i", "title"]}
    items = parsed(tmp_path, "e.csv", "items.tsv", **given).items
    assert items and items.select == {"item": "i", "title": "title"}
    assert items.layout == Text("\t", ("i", "title"))
    named = parsed(tmp_path, "e.csv", "items.tsv", items="items.tsv", item_id="code").items
    assert named and named.select == {"item": "code"}


@pytest.mark.parametrize("given", [{"item_attributes": ["title"]}, {"item_id": "code"}, {"item_columns": ["i"]}])
def test_item_columns_without_items_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(UserError, match="need items, the table they are about"):
        config(**given)


def test_no_paths_are_refused() -> None:
    with pytest.raises(UserError, match="events needs one path at least"):
        config(events=[])


def test_folder_comes_before_the_data_folder_and_that_before_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / name for name in ("raw", "data", "here")]
    for place in places:
        place.mkdir()
        (place / "e.csv").write_text("u,i\n")
    monkeypatch.chdir(places[2])
    monkeypatch.setenv("TURBOREC_DATA", str(places[1]))
    assert config().parse(places[0]).events.paths == (places[0] / "e.csv",)
    (places[0] / "e.csv").unlink()
    assert config().parse(places[0]).events.paths == (places[1] / "e.csv",)
    monkeypatch.delenv("TURBOREC_DATA")
    assert config().parse(places[0]).events.paths == (places[2] / "e.csv",)


def test_absolute_path_is_itself(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("u,i\n")
    assert config(events=str(tmp_path / "e.csv")).parse(tmp_path / "raw").events.paths == (tmp_path / "e.csv",)


def test_missing_file_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBOREC_DATA", str(tmp_path / "data"))
    with pytest.raises(UserError) as caught:
        config(events="shop/e.csv").parse(tmp_path / "raw")
    for place in ("raw", "data"):
        assert str(tmp_path / place / "shop" / "e.csv") in str(caught.value)


def test_address_is_fetched_into_the_folder(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("u,i\n1,2\n")
    there = config(events=(tmp_path / "e.csv").as_uri())
    with pytest.raises(UserError, match="There is no file"):
        there.parse(tmp_path / "raw")
    there.download(tmp_path / "raw")
    (path,) = there.parse(tmp_path / "raw").events.paths
    assert path.name == "e.csv" and path.is_relative_to(tmp_path / "raw") and path.read_text() == "u,i\n1,2\n"


def test_address_without_a_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names no file"):
        config(events="https://example.org/").download(tmp_path)


@pytest.mark.data
def test_movietweetings_prepare_to_the_published_counts(data_folder: Path, tmp_path: Path) -> None:
    from turborec.data.prepare import Prepare, prepare
    from turborec.data.split import LeaveOneOut
    from turborec.data.store import open_store

    names = {"user": "user", "item": "movie", "value": "rating", "time": "seconds"}
    layout = {"columns": list(names.values()), "items": "movies.parquet", "item_id": "movie_id", "item_attributes": ["title"]}
    raw = config(events="raw/ratings.dat.gz", **names, **layout).parse(data_folder / "movietweetings")
    store = open_store(prepare(raw, {}, Prepare(bad_rows=0), LeaveOneOut(), tmp_path))
    assert (store.num_users, store.num_items, len(store.histories.items)) == (21_081, 12_611, 141_695)
