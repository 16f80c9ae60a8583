"""Feature tables: what is in a file is in the store under its items, or is refused with its place; and what it decides."""

import bz2
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from turborec.data import features as features_module
from turborec.data.features import write_features
from turborec.data.prepare import Prepare, prepare, store_key
from turborec.data.schema import FeatureTable, RawTable, RawTables, Text
from turborec.data.shards import is_sharded
from turborec.data.split import LeaveOneOut
from turborec.data.store import Ids, Store, open_store
from turborec.errors import UserError

COLUMNS = ("user", "item", "time")
ITEMS = ["1", "10", "2", "3"]
"""The raw ids of a store of four items, in byte order."""
HALVES = np.arange(8, dtype=np.float32).reshape(4, 2) / 2


def ids_of(folder: Path, ids: Sequence[str] = ITEMS) -> Ids:
    Ids.write(folder / "item_ids", [text.encode() for text in sorted(ids, key=str.encode)])
    return Ids(folder / "item_ids")


def written(folder: Path, table: FeatureTable, ids: Sequence[str] = ITEMS) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """What the written table says of each item by raw id, and the card of the table."""
    known = ids_of(folder, ids)
    card = write_features({"image": table}, known, folder)["image"]
    array = np.load(folder / "features.image.npy")
    assert array.dtype == np.float32 and len(array) == len(known) + 1 and np.isnan(array[0]).all()
    return dict(zip(known.raw(range(len(known))), array[1:].tolist(), strict=True)), card


def array(path: Path, numbers: Any) -> Path:
    np.save(path, numbers)
    return path


def lines(path: Path, *texts: str) -> Path:
    path.write_bytes("".join(f"{text}\n" for text in texts).encode())
    return path


def same(got: Mapping[str, Sequence[float]], expected: Mapping[str, Sequence[float]]) -> bool:
    return got.keys() == expected.keys() and all(np.array_equal(got[k], expected[k], equal_nan=True) for k in got)


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_row_of_an_array_is_the_item_of_its_number(tmp_path: Path, kind: str, order: Any) -> None:
    numbers = np.asarray(np.arange(24).reshape(12, 2) / 4, dtype=kind, order=order)
    got, card = written(tmp_path, FeatureTable(array(tmp_path / "i.npy", numbers)))
    assert got == {text: [int(text) / 2, int(text) / 2 + 0.25] for text in ITEMS}
    assert card == {"files": ["i.npy"], "width": 2, "items": 4, "skipped": 8}


def test_ids_file_says_whose_the_rows_are(tmp_path: Path) -> None:
    ids = lines(tmp_path / "ids.txt", "3", "unknown", "1", "10")
    got, card = written(tmp_path, FeatureTable(array(tmp_path / "i.npy", HALVES), ids))
    nothing = [np.nan, np.nan]
    assert same(got, {"3": [0.0, 0.5], "1": [2.0, 2.5], "10": [3.0, 3.5], "2": nothing})
    assert card == {"files": ["i.npy", "ids.txt"], "width": 2, "items": 3, "skipped": 1}


PLAIN = "id\t0\t1\n3\t0.5\t-1e-3\n\nother\t1\t1\n1\t+2\t.5\n"


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.tsv", PLAIN),
        ("a.tsv", "\ufeff" + PLAIN.replace("\n", "\r\n")),
        ("a.TSV", PLAIN.removesuffix("\n")),
        ("a.csv", PLAIN.replace("\t", ",")),
        ("a.csv", '"id","0","1"\n"3","0.5",-1e-3\nother,1,"1"\n1,+2,.5\n'),
    ],
)
def test_text_is_read_packed_or_not(tmp_path: Path, name: str, text: str, suffix: str) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}[suffix]
    (tmp_path / f"{name}{suffix}").write_bytes(pack(text.encode()))
    got, card = written(tmp_path, FeatureTable(tmp_path / f"{name}{suffix}"), ["1", "3"])
    assert got == {"1": [2.0, 0.5], "3": [0.5, float(np.float32(-1e-3))]}
    assert (card["width"], card["items"], card["skipped"]) == (2, 2, 1)


def test_id_with_a_delimiter_is_quoted(tmp_path: Path) -> None:
    got, _ = written(tmp_path, FeatureTable(lines(tmp_path / "a.csv", "id,0", '"a,b ""c""",7')), ['a,b "c"', "z"])
    assert got['a,b "c"'] == [7.0]


@pytest.mark.parametrize("bound", [1, 20, 2**23])
def test_blocks_of_any_size_give_the_same_table(tmp_path: Path, bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "BLOCK_BYTES", bound)
    names = [f"é{n}" for n in range(30)]
    ids = lines(tmp_path / "ids.txt", *reversed(names))
    got, _ = written(tmp_path, FeatureTable(array(tmp_path / "i.npy", np.arange(60.0).reshape(30, 2)), ids), names)
    assert got == {name: [58.0 - 2 * n, 59.0 - 2 * n] for n, name in enumerate(names)}


def with_ids(folder: Path, numbers: NDArray[Any], *ids: str) -> FeatureTable:
    return FeatureTable(array(folder / "i.npy", numbers), lines(folder / "ids.txt", *ids))


def spoilt(place: tuple[int, int], value: float, kind: Any = np.float64) -> NDArray[Any]:
    numbers = np.ones((12, 2), dtype=kind)
    numbers[place] = value
    return numbers


def text(folder: Path, *rows: str) -> FeatureTable:
    return FeatureTable(lines(folder / "a.tsv", *rows))


REFUSED: dict[str, tuple[Callable[[Path], FeatureTable], str]] = {
    "nan": (
        lambda f: FeatureTable(array(f / "i.npy", spoilt((2, 1), np.nan))),
        r"i\.npy, row 2 \(item '2'\): number 2 of 2, nan",
    ),
    "inf": (lambda f: with_ids(f, spoilt((1, 0), np.inf)[:2], "1", "2"), r"row 1 \(item '2'\): number 1 of 2, inf, is not"),
    "nan of an item that is skipped": (lambda f: FeatureTable(array(f / "i.npy", spoilt((11, 0), np.nan))), r"row 11 \(item"),
    "too large": (lambda f: FeatureTable(array(f / "i.npy", spoilt((3, 0), 1e39))), r"1e\+39, is beyond 1e\+15"),
    "nan in text": (lambda f: text(f, "id\t0", "1\t0.5", "2\tnan"), r"a\.tsv, line 3 \(item '2'\): number 1 of 1, nan, is not"),
    "inf in text": (lambda f: text(f, "id\t0", "1\t-Infinity"), r"line 2 \(item '1'\): number 1 of 1, -inf, is not finite"),
    "too large in text": (lambda f: text(f, "id\t0", "1\t1e999"), r"line 2 \(item '1'\): number 1 of 1, inf"),
    "no number": (
        lambda f: text(f, "id\t0\t1", "1\t1\t2", "2\t3\tx4"),
        r"line 3 \(item '2'\): number 2 of 2 is 'x4', which is no",
    ),
    "underscore": (lambda f: text(f, "id\t0", "1\t1_0"), r"number 1 of 1 is '1_0', which is no number"),
    "nothing": (lambda f: text(f, "id\t0\t1", "1\t\t2"), r"number 1 of 2 is '', which is no number"),
    "narrow": (
        lambda f: text(f, "id\t0\t1", "1\t1\t2", "", "2\t3"),
        r"line 4 \(item '2'\) has 1 numbers, where the header names 2",
    ),
    "wide": (lambda f: text(f, "id\t0", "1\t1\t2"), r"line 2 \(item '1'\) has 2 numbers, where the header names 1"),
    "twice in text": (lambda f: text(f, "id\t0", "1\t1", "1\t1"), r"line 3 \(item '1'\): line 2 is this item's, too"),
    "twice": (lambda f: with_ids(f, HALVES, "1", "2", "3", "2"), r"i\.npy, row 3 \(item '2'\): row 1 is this item's, too"),
    "no id": (lambda f: text(f, "id\t0", "\t1"), r"line 2 begins with no raw id"),
    "no header": (
        lambda f: text(f, "1\t0.5", "2\t0.5"),
        r"begins with a row, that of the item '1', where its header should be",
    ),
    "empty": (lambda f: text(f), r"must begin with a header"),
    "another delimiter": (lambda f: text(f, "id,0", "1,2"), r"separated by '\\t': got 'id,0'"),
    "quotes": (lambda f: FeatureTable(lines(f / "a.csv", "id,0", '"1,2')), r"a\.csv, line 2: quotes do not match"),
    "encoding": (lambda f: FeatureTable(bytes_of(f / "a.tsv", b"id\t0\n1\t1\n\xff\t1\n")), r"line 3: not valid UTF-8"),
    "damaged": (
        lambda f: FeatureTable(bytes_of(f / "a.tsv.gz", gzip.compress(b"id\t0\n1\t1\n")[:-9])),
        r"a\.tsv\.gz cannot be read",
    ),
    "fewer ids": (lambda f: with_ids(f, HALVES, "1", "2", "3"), r"ids\.txt has 3 lines, and .*i\.npy 4 rows"),
    "more ids": (lambda f: with_ids(f, HALVES, "1", "2", "3", "10", "7", "8"), r"ids\.txt has 6 lines, and .*i\.npy 4 rows"),
    "blank id": (lambda f: with_ids(f, HALVES, "1", "", "3", "2"), r"ids\.txt, line 2 is empty"),
    "no row": (
        lambda f: FeatureTable(array(f / "i.npy", HALVES)),
        r"i\.npy has no row for the item '10': without a file of ids",
    ),
    "others": (lambda f: with_ids(f, HALVES, "a", "b", "c", "d"), r"a row for none of the 4 items, such as '1'"),
    "others in text": (lambda f: text(f, "id\t0", "a\t1"), r"a row for none of the 4 items"),
    "flat": (lambda f: FeatureTable(array(f / "i.npy", np.ones(4))), r"has the shape \[4\]: expected rows"),
    "no numbers": (lambda f: FeatureTable(array(f / "i.npy", np.ones((4, 0)))), r"has the shape \[4, 0\]"),
    "integers": (lambda f: FeatureTable(array(f / "i.npy", np.ones((4, 2), int))), r"holds int64: expected float16"),
    "long floats": (lambda f: FeatureTable(array(f / "i.npy", np.ones((4, 2), np.longdouble))), r"holds float128: expected"),
    "objects": (lambda f: FeatureTable(array(f / "i.npy", np.array([[{}]]))), r"i\.npy cannot be read as an array of numbers"),
    "cut short": (lambda f: FeatureTable(cut(array(f / "i.npy", HALVES))), r"i\.npy cannot be read as an array of numbers"),
    "no array": (lambda f: FeatureTable(lines(f / "i.npy", "1 2 3")), r"i\.npy cannot be read as an array of numbers"),
    "unknown": (lambda f: FeatureTable(lines(f / "i.pt", "1 2 3")), r"i\.pt does not tell how it is laid out: expected \.npy"),
    "ids beside text": (lambda f: FeatureTable(text(f, "id\t0").path, lines(f / "ids.txt")), r"ids\.txt must be left out"),
}


def bytes_of(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def cut(path: Path) -> Path:
    return bytes_of(path, path.read_bytes()[:-1])


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_with_its_place(tmp_path: Path, case: str) -> None:
    table, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        written(tmp_path, table(tmp_path))


numbers = st.floats(-1e6, 1e6, width=32)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text("ab1é ", min_size=1, max_size=3), st.tuples(numbers, numbers), min_size=2), st.randoms())
def test_neither_order_nor_names_nor_form_change_what_an_item_has(
    tmp_path: Path, rows: dict[str, tuple[float, float]], random: Any
) -> None:
    """Shuffled and renamed, as an array with ids, by number alone or as text, the table tells the same of every item."""
    shuffled = random.sample(sorted(rows), len(rows))
    stacked = np.asarray([rows[text] for text in shuffled], dtype=np.float32)
    as_array, _ = written(tmp_path, with_ids(tmp_path, stacked, *shuffled), list(rows))
    assert as_array == {text: list(row) for text, row in rows.items()}
    as_text, _ = written(
        tmp_path, text(tmp_path, "item\ta\tb", *(f"{t}\t{rows[t][0]!r}\t{rows[t][1]!r}" for t in shuffled)), list(rows)
    )
    assert as_text == as_array
    numbered, _ = written(tmp_path, FeatureTable(tmp_path / "i.npy"), [str(n) for n in range(len(rows))])
    assert {text: numbered[str(n)] for n, text in enumerate(shuffled)} == as_array


def raw_tables(folder: Path, **features: FeatureTable) -> RawTables:
    rows = [f"u{n % 3}\t{ITEMS[n % 4]}\t{n}" for n in range(24)]
    events = RawTable((lines(folder / "events.tsv", *rows),), Text("\t", COLUMNS), {name: name for name in COLUMNS})
    return RawTables(events, features=features)


def made(folder: Path, config: Prepare | None = None, **features: FeatureTable) -> Store:
    raw = raw_tables(folder, **features)
    return open_store(prepare(raw, {"kind": "test"}, config or Prepare(), LeaveOneOut(), folder))


def test_store_has_its_tables_mapped_and_its_card_tells_of_them(tmp_path: Path) -> None:
    table = with_ids(tmp_path, HALVES, "1", "2", "unknown", "3")
    store = made(tmp_path, audio=text(tmp_path, "id\t0", "10\t7"), image=table)
    assert list(store.features) == ["audio", "image"]
    image = store.features["image"]
    assert np.array_equal(image, [[np.nan] * 2, [0, 0.5], [np.nan] * 2, [1, 1.5], [3, 3.5]], equal_nan=True)
    assert image.dtype == np.float32 and not image.flags.writeable and image.base is not None
    assert store.card["features"] == {
        "audio": {"files": ["a.tsv"], "width": 1, "items": 1, "skipped": 0},
        "image": {"files": ["i.npy", "ids.txt"], "width": 2, "items": 3, "skipped": 1},
    }
    assert [fact["name"] for fact in store.card["source"]["files"]] == ["events.tsv", "a.tsv", "i.npy", "ids.txt"]
    assert {"features.audio.npy", "features.image.npy"} <= store.card["files"].keys()


def test_store_without_tables_has_none_and_is_what_it_was(tmp_path: Path) -> None:
    store = made(tmp_path)
    assert dict(store.features) == {} and "features" not in store.card
    bare = RawTables(RawTable((Path("events.tsv"),), Text("\t", COLUMNS), {name: name for name in COLUMNS}))
    key = store_key(bare, [{"sha256": "a"}], Prepare(), LeaveOneOut())
    assert key == "84f934d7c8e530434b3478a271524e86931dd6c04e43748a5b8c7aa33d9af1d9"


def test_content_names_and_ids_decide_the_key_and_places_do_not(tmp_path: Path) -> None:
    ids = lines(tmp_path / "ids.txt", *ITEMS)
    plain, other = array(tmp_path / "i.npy", HALVES), array(tmp_path / "j.npy", HALVES + 1)
    (tmp_path / "elsewhere").mkdir()
    moved = array(tmp_path / "elsewhere" / "k.npy", HALVES)
    keys = [
        made(tmp_path).key,
        made(tmp_path, image=FeatureTable(plain, ids)).key,
        made(tmp_path, image=FeatureTable(other, ids)).key,
        made(tmp_path, image=FeatureTable(plain, lines(tmp_path / "reversed.txt", *reversed(ITEMS)))).key,
        made(tmp_path, audio=FeatureTable(plain, ids)).key,
        made(tmp_path, audio=FeatureTable(plain, ids), image=FeatureTable(other, ids)).key,
        made(tmp_path, audio=FeatureTable(other, ids), image=FeatureTable(plain, ids)).key,
    ]
    assert len(set(keys)) == len(keys)
    assert made(tmp_path, image=FeatureTable(moved, ids)).key == keys[1]


def test_shards_hold_the_same_table(tmp_path: Path) -> None:
    wide = with_ids(tmp_path, np.random.default_rng(0).standard_normal((4, 2**17)), *ITEMS)
    whole = made(tmp_path, image=wide)
    (tmp_path / "again").mkdir()
    sharded = made(tmp_path / "again", Prepare(shard_mb=1), image=wide)
    assert sharded.key == whole.key and is_sharded(sharded.folder / "features.image.npy")
    assert np.array_equal(sharded.features["image"], whole.features["image"], equal_nan=True)
    assert sharded.card["features"] == whole.card["features"]


def test_items_of_a_core_are_all_that_is_kept(tmp_path: Path) -> None:
    store = made(tmp_path, Prepare(min_item_events=6), image=with_ids(tmp_path, HALVES, *ITEMS))
    assert store.features["image"].tolist()[1:] == HALVES.tolist()
    assert open_store(store.folder, verify=True).features.keys() == {"image"}


@pytest.mark.parametrize("name", ["Image", "2d", "a-b", "", "é", "a.b", "a\n"])
def test_names_that_are_none_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"cannot be called .*: its name must begin"):
        made(tmp_path, **{name: with_ids(tmp_path, HALVES, *ITEMS)})


def test_missing_files_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    raw = raw_tables(tmp_path, image=FeatureTable(array(tmp_path / "i.npy", HALVES), tmp_path / "none.txt"))
    with pytest.raises(UserError, match=r"none\.txt of the feature table 'image' does not exist"):
        prepare(raw, {}, Prepare(), LeaveOneOut(), tmp_path)
    assert not (tmp_path / "stores").exists()


def test_refused_table_leaves_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="row for none of"):
        made(tmp_path, image=with_ids(tmp_path, HALVES, *"abcd"))
    assert [path.suffix for path in (tmp_path / "stores").iterdir()] == [".lock"]


def test_table_of_another_length_than_the_items_is_refused(tmp_path: Path) -> None:
    store = made(tmp_path, image=with_ids(tmp_path, HALVES, *ITEMS))
    np.save(store.folder / "features.image.npy", HALVES)
    card = json.loads((store.folder / "card.json").read_text())
    again = Store(store.folder, card, store.histories, store.cuts, store.parts)
    with pytest.raises(UserError, match=r"'image' of .* have the shape \[4, 2\], where 5 rows belong"):
        assert again.features
