import bz2
import gzip
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from turborec.data.prepare import Prepare, prepare
from turborec.data.split import Labelled, LeaveOneOut, Split
from turborec.data.store import Store, open_store
from turborec.errors import UserError
from turborec.recipe import validate
from turborec.sources.recbole import DERIVED, Config

FIXTURES = Path(__file__).parents[1] / "fixtures" / "recbole"
HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
SOUND = "".join(f"u{n % 2}\ti{n % 3}\t3\t{100 + n}\n" for n in range(8))


def config(**given: object) -> Config:
    return validate(Config, {"name": "set"} | given, "the test")


def prepared(source: Config, folder: Path, home: Path, split: Split | None = None, bad_rows: float = 0) -> Store:
    return open_store(
        prepare(source.parse(folder), {"kind": "recbole"}, Prepare(bad_rows=bad_rows), split or LeaveOneOut(), home)
    )


def written(folder: Path, **files: str) -> Path:
    """The folder with the files set.inter, set.item …"""
    for suffix, text in files.items():
        (folder / f"set.{suffix}").write_text(text, encoding="utf-8", newline="")
    return folder


def items(store: Store) -> dict[str, dict[str, str | None]]:
    return {row.pop("item"): row for row in pq.read_table(store.folder / "items.parquet").to_pylist()}


def test_times_written_as_floats_are_whole_seconds(tmp_path: Path) -> None:
    store = prepared(config(name="fruit"), FIXTURES / "whole", tmp_path)
    assert store.histories.times[:5].tolist() == [880_000_000 + 61 * n for n in range(5)]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("881250949", "881250949"),
        ("881250949.0", "881250949"),
        ("881250949.", "881250949"),
        ("8.81250949e8", "881250949"),
        ("8.8e+08", "880000000"),
        ("1E3", "1000"),
        ("1700000001.0", "1700000001"),
        ("9007199254740993", "9007199254740993"),
        ("9007199254740993.0", "9007199254740993.0"),
        ("881250949.5", "881250949.5"),
        ("-1.0", "-1.0"),
        ("nan", "nan"),
        ("1e400", "1e400"),
        ("1e-3", "1e-3"),
        (" 1", " 1"),
        ("", ""),
    ],
)
def test_only_whole_times_become_whole_and_no_digit_is_lost(text: str, read: str) -> None:
    query = f"SELECT {DERIVED['time'].replace('{x}', 'x')} FROM (SELECT $1 AS x)"
    assert duckdb.connect().execute(query, [text]).fetchone() == (read,)


@pytest.mark.parametrize("time", ["102.7", "8.81250949001e8", "soon", "nan"])
def test_time_that_is_not_whole_is_a_bad_row(tmp_path: Path, time: str) -> None:
    written(tmp_path, inter=f"{HEADER}{SOUND}u\ti\t1\t{time}\n")
    with pytest.raises(UserError, match=r"\n  set\.inter:10: time is not a whole number: "):
        prepared(config(), tmp_path, tmp_path)


def test_value_of_another_type_is_a_bad_row(tmp_path: Path) -> None:
    written(tmp_path, inter=f"{HEADER}{SOUND}u\ti\tgood\t1\nu\t\t1\t1\n\nu\ti\n")
    store = prepared(config(), tmp_path, tmp_path, bad_rows=0.5)
    quarantine = (store.folder / "quarantine.tsv").read_text().splitlines()
    assert [line.split("\t")[1:3] for line in quarantine[1:]] == [
        ["10", "value is not a finite number"],
        ["11", "item is empty"],
        ["13", "2 columns instead of 4"],
    ]


def test_columns_of_items_are_attributes_with_the_text_beside_them(tmp_path: Path) -> None:
    told = items(prepared(config(name="fruit"), FIXTURES / "whole", tmp_path))
    text = 'A "ripe" fig, from the south'
    assert told["fig"] == {"name": "A ripe fig", "colour": None, "vector": "0.5 -1 1", "text": text}
    assert told["apple"] == {"name": "A ripe apple", "colour": "green", "vector": "0.5 -1 4", "text": None}


def test_files_of_parts_are_labels_and_indices_are_raw_ids(tmp_path: Path) -> None:
    source = config(name="shop", benchmark_filename=["train", "valid", "test"])
    store = prepared(source, FIXTURES / "split", tmp_path, Labelled())
    assert (store.cuts - store.histories.offsets[:-1, None]).tolist() == [[3, 4]] * 4
    assert store.user_ids.raw(range(4)) == [f"AMADEUP{n}" for n in range(4)]
    assert store.item_ids.raw(store.histories.items[:5] - 1) == [f"B00INV00{n}" for n in range(5)]
    assert items(store)["B00INV002"] == {"text": "Thing number 2. Invented."}
    assert items(store)["B00INV004"] == {"text": None}


def test_index_that_stands_for_nothing_is_a_bad_row(tmp_path: Path) -> None:
    written(tmp_path, inter=HEADER + SOUND, item2index="B0\ti0\nB1\ti1\n")
    with pytest.raises(UserError, match=r"set\.inter:4: item is not in set\.item2index: "):
        prepared(config(), tmp_path, tmp_path)


def test_items_are_named_by_index_where_nothing_else_describes_them(tmp_path: Path) -> None:
    index = "B0\ti0\nB1\ti1\nB2\ti2\n"
    written(tmp_path, inter=HEADER + SOUND, item2index=index, item="item_id:token\tname:token_seq\ni1\tPlum\n")
    assert items(prepared(config(), tmp_path, tmp_path))["B1"] == {"name": "Plum"}


def test_parts_as_mmrec_writes_them_are_labels(tmp_path: Path) -> None:
    source = config(name="baby", user="userID", item="itemID", label="x_label")
    store = prepared(source, FIXTURES / "mmrec", tmp_path, Labelled())
    assert (store.cuts - store.histories.offsets[:-1, None]).tolist() == [[3, 4]] * 4


def test_columns_may_be_called_otherwise_and_order_may_lead(tmp_path: Path) -> None:
    rows = "".join(f"a\tx{n}\t{9 - n}.0\t{n}\n" for n in range(9))
    written(tmp_path, inter=f"who:token\twhat:token\tplace:float\tweight:float\n{rows}")
    source = config(user="who", item="what", order="place", value="weight")
    store = prepared(source, tmp_path, tmp_path)
    assert store.item_ids.raw(store.histories.items - 1) == [f"x{8 - n}" for n in range(9)]
    assert source.parse(tmp_path).events.select == {"user": "who:token", "item": "what:token", "value": "weight:float"}


def test_mark_and_line_ends_of_other_machines_are_seen_through(tmp_path: Path) -> None:
    text = "\ufeff" + (HEADER + SOUND).replace("\n", "\r\n")
    written(tmp_path, inter=text)
    assert prepared(config(), tmp_path, tmp_path).num_users == 2


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("", "is empty, or its first line is: expected a header such as user_id:token"),
        ("user_id:token\titem_id:word", "with the types token, token_seq, float, float_seq; got 'item_id:word'"),
        ("user_id:token,item_id:token", r"separated by '\\t', .*; got 'user_id:token,item_id:token'"),
        ("user:token\titem_id:token", r"no column 'user_id' \(did you mean 'user'\?\): state which one is the user"),
        ("1\t2\t3", "no column 'user_id'"),
        ("user_id:token\titem_id:token_seq", "item_id:token_seq hold sequences, where a single value is needed"),
        (
            "user_id:token\titem_id_list:token_seq\titem_id:token",
            "a whole history in each row .item_id_list:token_seq., which is not",
        ),
        ("user_id:token\titem_id:token", "holds no rows below its header"),
    ],
)
def test_header_that_does_not_fit_is_refused_with_the_reason(tmp_path: Path, header: str, message: str) -> None:
    written(tmp_path, inter=header and header + "\n")
    with pytest.raises(UserError, match=message):
        prepared(config(), tmp_path, tmp_path)


# Named, for a gzip header holds the second it was made in, and every worker must give a test the same name.
@pytest.mark.parametrize(
    "content",
    [*(pack(b"user_id:token\titem_id:token\n" * 99)[:-30] for pack in (gzip.compress, bz2.compress)), b"\xff\xfe\x00\n"],
    ids=["gzip", "bzip2", "utf-16"],
)
def test_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "set.inter").write_bytes(content)
    with pytest.raises(UserError, match=r"set\.inter (cannot be read|does not begin with a header in UTF-8)"):
        prepared(config(), tmp_path, tmp_path)


def test_missing_files_say_where_they_were_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBOREC_DATA", str(tmp_path / "data"))
    with pytest.raises(UserError) as caught:
        config(name="sets/ml").download(tmp_path / "raw")
    for part in ("ml.inter", str(tmp_path / "raw"), str(tmp_path / "data" / "sets" / "ml")):
        assert part in str(caught.value)
    written(tmp_path, **{"train.inter": HEADER + SOUND})
    with pytest.raises(UserError, match=r"There are set\.train\.inter: name their parts in benchmark_filename"):
        config().parse(tmp_path)


def test_files_are_found_below_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBOREC_DATA", str(tmp_path))
    (tmp_path / "sets" / "set").mkdir(parents=True)
    written(tmp_path / "sets" / "set", inter=HEADER + SOUND)
    assert config(name="sets/set").parse(tmp_path / "raw").events.paths == (tmp_path / "sets" / "set" / "set.inter",)


def test_parts_of_different_columns_are_refused(tmp_path: Path) -> None:
    written(
        tmp_path, **{"a.inter": HEADER + SOUND, "b.inter": HEADER + SOUND, "c.inter": "item_id:token\tuser_id:token\ni\tu\n"}
    )
    with pytest.raises(UserError, match=r"set\.a\.inter, set\.b\.inter, set\.c\.inter must have the same columns"):
        config(benchmark_filename=["a", "b", "c"]).parse(tmp_path)


def test_two_ways_to_say_the_part_are_refused() -> None:
    with pytest.raises((UserError, ValidationError), match="keep one"):
        config(label="part", benchmark_filename=["a", "b", "c"])


@pytest.mark.data
def test_movielens_100k_as_recbole_has_it_is_movielens_100k(data_folder: Path, tmp_path: Path) -> None:
    from turborec.sources.movielens import Config as MovieLens

    folder = data_folder / "ml-100k" / "raw"
    ours = prepared(config(name="ml-100k"), folder, tmp_path)
    raw = MovieLens(name="100k").parse(folder)
    theirs = open_store(prepare(raw, {"kind": "movielens"}, Prepare(bad_rows=0), LeaveOneOut(), tmp_path))
    assert (ours.num_users, ours.num_items, len(ours.histories.items)) == (943, 1_682, 100_000)
    for name in ("offsets", "items", "times"):
        assert (getattr(ours.histories, name) == getattr(theirs.histories, name)).all()
    assert items(ours)["1"] == {"movie_title": "Toy Story", "release_year": "1995", "class": "Animation Children's Comedy"}


def test_a_column_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.inter").write_text("user_id:token\titem_id:token\titem_id:float\nu\ti\t1\n")
    with pytest.raises(UserError, match="names the column 'item_id' twice"):
        Config(name="d").parse(tmp_path)
