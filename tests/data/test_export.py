import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stores import item_id, store_of, user_id
from turborec.data import atomic, export
from turborec.data.atomic import export_atomic
from turborec.data.prepare import Prepare, prepare
from turborec.data.schema import Columnar, RawTable, RawTables
from turborec.data.split import GlobalTime, Labelled, LeaveOneOut, Split, UserHoldout
from turborec.data.store import Store, open_store
from turborec.errors import UserError
from turborec.sources.recbole import Config

HISTORIES = [[3, 1, 2, 1], [2, 3], [1, 1, 1, 2, 3]]


def made(folder: Path, split: Split | None = None, unit: Any = "seconds", **columns: list[Any]) -> Store:
    """A store of 5 users with 7 events each, many at the same time, and items with attributes."""
    folder.mkdir()
    users = [f"u {n // 7}" for n in range(35)]
    events = {"user": users, "item": [f"{(n * n) % 11}" for n in range(35)], "time": [9 - (n % 7) // 2 for n in range(35)]}
    pq.write_table(pa.table(events | columns), folder / "events.parquet")
    titles = ['"Über" "x', "a\tb\r\nc", "", None, "d|e", *["t"] * 6]
    pq.write_table(
        pa.table({"item": [str(n) for n in range(11)], "title": titles, "year": list(range(11))}), folder / "items.parquet"
    )
    names = [*events, *(name for name in columns if name not in events)]
    table = RawTable((folder / "events.parquet",), Columnar(), {name: name for name in names})
    items = RawTable((folder / "items.parquet",), Columnar(), {name: name for name in ("item", "title", "year")})
    return open_store(prepare(RawTables(table, items, unit), {}, Prepare(), split or LeaveOneOut(), folder))


def read_again(folder: Path, home: Path, split: Split, **given: Any) -> Store:
    raw = Config(name=folder.name, order="position", **given).parse(folder)
    return open_store(prepare(raw, {}, Prepare(bad_rows=0), split, home))


def require_equal(one: Store, other: Store) -> None:
    for name in ("offsets", "items", "times"):
        assert np.array_equal(getattr(one.histories, name), getattr(other.histories, name))
    assert np.array_equal(one.cuts, other.cuts) and np.array_equal(one.parts, other.parts)
    for ids in ("user_ids", "item_ids"):
        first, second = getattr(one, ids), getattr(other, ids)
        assert first.raw(range(len(first))) == second.raw(range(len(second)))


def test_what_recbole_gets_comes_back_as_the_same_store(tmp_path: Path) -> None:
    store = made(tmp_path / "raw")
    assert export_atomic(store, tmp_path / "shop", parts=False) == 35
    assert sorted(path.name for path in (tmp_path / "shop").iterdir()) == ["shop.inter", "shop.item"]
    again = read_again(tmp_path / "shop", tmp_path, LeaveOneOut())
    require_equal(store, again)
    before, after = (pq.read_table(s.folder / "items.parquet").to_pylist() for s in (store, again))
    said = {"a\tb\r\nc": "a b c", '"Über" "x': "'Über' 'x"}
    assert after == [row | {"title": said.get(row["title"], row["title"])} for row in before]
    assert {*said.values()} <= {row["title"] for row in after}
    with (tmp_path / "shop" / "shop.item").open(newline="", encoding="utf-8") as file:
        assert [row[1] for row in csv.reader(file, delimiter="\t")][1:] == [row["title"] or "" for row in after]


@pytest.mark.parametrize(
    "split", [LeaveOneOut(), GlobalTime(validation_from=0.4, test_from=0.7), Labelled()], ids=lambda s: s.kind
)
def test_parts_come_back_as_labels(tmp_path: Path, split: Split) -> None:
    labels = [("train", "train", "valid", "train", "test", "train", "test")[n % 7] for n in range(35)]
    store = made(tmp_path / "raw", split, label=labels)
    export_atomic(store, tmp_path / "shop", parts=True)
    names = [f"shop.{part}.inter" for part in ("test", "train", "valid")]
    assert sorted(path.name for path in (tmp_path / "shop").iterdir()) == sorted([*names, "shop.item"])
    require_equal(store, read_again(tmp_path / "shop", tmp_path, Labelled(), benchmark_filename=("train", "valid", "test")))


def test_unknown_times_stay_unknown_and_known_ones_exact(tmp_path: Path) -> None:
    times = [None if n % 3 else 1_700_000_000_001 + n for n in range(35)]
    store = made(tmp_path / "raw", unit="milliseconds", time=times, order=[-n for n in range(35)])
    export_atomic(store, tmp_path / "shop", parts=False)
    require_equal(store, read_again(tmp_path / "shop", tmp_path, LeaveOneOut(), time_format="milliseconds"))


def test_the_files_hold_what_recbole_expects(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", HISTORIES, times=[[5, 6, 6, 2**31 + 1], [1, 2], [0, 0, 0, 0, 7]])
    export_atomic(store, tmp_path / "set", parts=False)
    lines = (tmp_path / "set" / "set.inter").read_text().splitlines()
    assert lines[0] == "user_id:token\titem_id:token\ttimestamp:float\tposition:float"
    assert lines[4] == f"{user_id(0)}\t{item_id(1)}\t2147483649\t3"
    assert lines[5] == f"{user_id(1)}\t{item_id(2)}\t1\t0"
    assert len(lines) == 12 and not (tmp_path / "set" / "set.item").exists()


def test_no_column_of_times_where_none_is_known(tmp_path: Path) -> None:
    export_atomic(store_of(tmp_path / "store", HISTORIES), tmp_path / "set", parts=True)
    lines = (tmp_path / "set" / "set.valid.inter").read_text().splitlines()
    assert lines == [
        "user_id:token\titem_id:token\tposition:float",
        f"{user_id(0)}\t{item_id(2)}\t2",
        f"{user_id(2)}\t{item_id(2)}\t3",
    ]


def test_blocks_of_users_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path / "store", HISTORIES)
    for size in (1, 2, 100):
        monkeypatch.setattr(export, "USERS_AT_A_TIME", size)
        monkeypatch.setattr(atomic, "BLOCK", size)
        (tmp_path / f"{size}").mkdir()
        export_atomic(store, tmp_path / f"{size}" / "set", parts=True)
        export.export(store, tmp_path / f"{size}.tsv")
    for name in ("train", "valid", "test"):
        texts = {(tmp_path / f"{size}" / "set" / f"set.{name}.inter").read_bytes() for size in (1, 2, 100)}
        assert len(texts) == 1
    assert len({(tmp_path / f"{size}.tsv").read_bytes() for size in (1, 2, 100)}) == 1


def test_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", HISTORIES)
    (tmp_path / "set").mkdir()
    export_atomic(store, tmp_path / "set", parts=False)
    with pytest.raises(UserError, match=r"is there already and not an empty folder"):
        export_atomic(store, tmp_path / "set", parts=True)
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["set.inter"]


@pytest.mark.parametrize("user", ["a\tb", "a\nb", '"a"'])
def test_nothing_is_left_where_an_id_cannot_be_written(tmp_path: Path, user: str) -> None:
    store = made(tmp_path / "raw", user=[user] * 7 + ["c"] * 28)
    with pytest.raises(UserError, match=r"The user '.*' holds a tab or a line end, or begins with a quote"):
        export_atomic(store, tmp_path / "shop", parts=False)
    assert not (tmp_path / "shop").exists() and not list(tmp_path.glob(".shop*"))


def test_users_held_out_from_training_do_not_fit_into_files_of_parts(tmp_path: Path) -> None:
    store = made(tmp_path / "raw", UserHoldout(validation=0.2, test=0.2))
    with pytest.raises(UserError, match="2 users are held out from training altogether"):
        export_atomic(store, tmp_path / "shop", parts=True)
    assert export_atomic(store, tmp_path / "shop", parts=False) == 35


def test_a_table_that_is_not_finished_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path / "store", HISTORIES)
    with pytest.raises(UserError, match=r"ending in \.parquet, \.csv, \.tsv or \.jsonl, got .*events\.json"):
        export.export(store, tmp_path / "events.json")
    monkeypatch.setattr(export, "rows_of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.export(store, tmp_path / "events.csv")
    shutil.rmtree(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["NA", "null", "None", "nan", "N/A"])
def test_ids_that_recbole_takes_for_missing_are_refused(tmp_path: Path, word: str) -> None:
    store = made(tmp_path / "made", user=[word if n < 7 else f"u{n // 7}" for n in range(35)])
    with pytest.raises(UserError, match="word for a missing value"):
        export_atomic(store, tmp_path / "out", parts=False)


def test_lists_of_single_words_are_parted_by_blanks_and_single_words_are_tokens(tmp_path: Path) -> None:
    columns = {"genres": ["Action|Sci-Fi", "Drama", None], "year": ["1999", "2001", ""], "title": ["A|B", "two words", "x"]}
    pq.write_table(pa.table({"item": ["0", "1", "2"], **columns}), tmp_path / "items.parquet")
    with pq.ParquetFile(tmp_path / "items.parquet") as table:
        read = {name: atomic._column(table, name) for name in columns}
    assert [column.header for column in read.values()] == ["genres:token_seq", "year:token", "title:token_seq"]
    assert read["genres"].written("Action|Sci-Fi") == "Action Sci-Fi" and read["title"].written("A|B") == "A|B"
