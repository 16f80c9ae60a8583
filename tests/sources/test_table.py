"""Tables of the user's own: the columns they name, the layouts they have, the places they lie in."""

import random
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from turborec.data.prepare import Prepare, prepare
from turborec.data.schema import Columnar, JsonLines, RawTables, Text
from turborec.data.split import LeaveOneOut
from turborec.data.store import open_store
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
        ("e.tsv.bz2", Text("\t", header=True)),
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


def partitioned(folder: Path) -> dict[str, object]:
    """A folder as Spark leaves it, in which hardly two files are alike; and how to read it as events."""
    draw = random.Random(1)
    for day, wide in (("2024-01-01", pa.int32()), ("2024-01-02", pa.int64()), ("2024-01-03", pa.int16())):
        for number, kind in enumerate(["buy", "view%2Fpage", "__HIVE_DEFAULT_PARTITION__"]):
            count = 40 * (number != 1 or day != "2024-01-02")  # one has no rows
            columns = {
                "who": pa.array([f"u{draw.randrange(9)}" for _ in range(count)], pa.string()),
                "what": pa.array([draw.randrange(31) for _ in range(count)], wide),
                "place": pa.array(range(count), wide),
                "else": pa.array([draw.random() for _ in range(count)], pa.float64()),
            }
            names = draw.sample(list(columns), 4)
            (place := folder / f"day={day}" / f"type={kind}").mkdir(parents=True)
            pq.write_table(pa.table({name: columns[name] for name in names}), place / "part-00000.snappy.parquet")
            (place / ".begun.parquet").write_bytes(b"half a file")
    (folder / "_SUCCESS").touch()
    (folder / "_temporary" / "0").mkdir(parents=True)
    (folder / "_temporary" / "0" / "part-00000.parquet").write_bytes(b"half a file")
    return {"events": folder.name, "user": "who", "item": "what", "time": "day", "order": "place", "event_kind": "type"}


def test_a_folder_stands_for_its_files_and_its_folders_tell_columns(tmp_path: Path) -> None:
    tables = config(**partitioned(tmp_path / "events")).parse(tmp_path)
    assert len(tables.events.paths) == 9 and tables.events.paths == tuple(sorted(tables.events.paths))
    assert tables.events.select == {"user": "who", "item": "what", "order": "place"}
    assert tables.events.constants["kind"] == ("", "buy", "view/page") * 3
    assert tables.events.constants["time"][:4] == ("2024-01-01", "2024-01-01", "2024-01-01", "2024-01-02")
    store = open_store(prepare(tables, {}, Prepare(kinds=("buy", "view/page")), LeaveOneOut(), tmp_path))
    assert store.card["counts"]["events"] == 40 * 5 and store.card["counts"]["dropped"]["other_kinds"] == 40 * 3
    assert store.card["time_unit"] == "milliseconds" and store.card["times"] == [1_704_067_200_000, 1_704_240_000_000]
    assert store.card["source"]["files"][0]["name"].startswith("day=2024-01-01/type=__HIVE_DEFAULT_PARTITION__/part-")


def test_what_the_folders_tell_decides_the_key(tmp_path: Path) -> None:
    keys = []
    for day in ("2024-01-01", "2024-01-02"):
        (folder := tmp_path / day / f"day={day}").mkdir(parents=True)
        (folder / "e.csv").write_text("u,i\na,1\na,2\na,3\n")
        read = config(events=str(tmp_path / day), time="day").parse(tmp_path)
        keys.append(prepare(read, {}, Prepare(), LeaveOneOut(), tmp_path).name)
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: pq.write_table(pa.table({"who": ["u"], "place": [1]}), path), "{path} has no column 'what'"),
        (lambda path: path.write_bytes(b""), "{path} cannot be read"),
        (lambda path: path.rename(path.with_suffix(".log")), "suffix of .*part-00000.snappy.log does not tell"),
        (
            lambda path: path.with_name("more.csv").write_text("who,what\n"),
            "more.csv, part-00000.* are laid out diff",
        ),
    ],
    ids=["column", "empty", "suffix", "layout"],
)
def test_a_file_of_a_folder_that_cannot_serve_is_named(tmp_path: Path, spoil: Any, message: str) -> None:
    given = partitioned(tmp_path / "events")
    path = tmp_path / "events" / "day=2024-01-02" / "type=buy" / "part-00000.snappy.parquet"
    spoil(path)
    with pytest.raises(UserError, match=message.replace("{path}", re.escape(str(path)))):
        prepare(config(**given).parse(tmp_path), {}, Prepare(), LeaveOneOut(), tmp_path)


def test_a_bad_row_is_named_with_the_folders_of_its_file(tmp_path: Path) -> None:
    for day in (1, 2):
        (folder := tmp_path / "events" / f"day={day}").mkdir(parents=True)
        (folder / "e.csv").write_text("u,i\na,1\na,2\na,3\n" + ",4\n" * (day - 1))
    with pytest.raises(UserError, match=r"day=2/e\.csv:5: user is empty"):
        prepare(config(events="events").parse(tmp_path), {}, Prepare(bad_rows=0), LeaveOneOut(), tmp_path)


def test_a_folder_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "_SUCCESS").touch()
    with pytest.raises(UserError, match="events holds no files"):
        config(events="events").parse(tmp_path)


@pytest.mark.data
def test_movietweetings_prepare_to_the_published_counts(data_folder: Path, tmp_path: Path) -> None:
    names = {"user": "user", "item": "movie", "value": "rating", "time": "seconds"}
    layout = {"columns": list(names.values()), "items": "movies.parquet", "item_id": "movie_id", "item_attributes": ["title"]}
    raw = config(events="raw/ratings.dat.gz", **names, **layout).parse(data_folder / "movietweetings")
    store = open_store(prepare(raw, {}, Prepare(bad_rows=0), LeaveOneOut(), tmp_path))
    assert (store.num_users, store.num_items, len(store.histories.items)) == (21_081, 12_611, 141_695)
