import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stores import item_id, store_of, user_id
from turborec import histories
from turborec.data import engine
from turborec.data.prepare import Prepare, prepare
from turborec.data.schema import UNKNOWN_TIME, RawTable, RawTables, Text
from turborec.data.split import LeaveOneOut
from turborec.data.store import Store, open_store
from turborec.errors import UserError
from turborec.histories import Users, from_file, read_ids, stored

HISTORIES = [[1, 2, 3], [4, 2, 2, 5], [], [3]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    times = [[10 * u + place for place in range(len(items))] for u, items in enumerate(HISTORIES)]
    return store_of(tmp_path / "store", HISTORIES, items=6, times=times)


def together(chunks: Iterable[Users]) -> Users:
    """The users of all chunks."""
    some = list(chunks)
    ids, items, times = ([value for users in some for value in getattr(users, name)] for name in ("ids", "items", "times"))
    return Users(ids, np.concatenate([u.rows for u in some]), items, times, sum(u.unknown_events for u in some))


def known(users: Users) -> dict[str, list[int]]:
    return {name: items.tolist() for name, items in zip(users.ids, users.items, strict=True)}


def history(tmp_path: Path, text: str, name: str = "history.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_stored_users_come_with_all_their_events_and_strangers_with_none(store):
    (users,) = stored(store, [user_id(1), "stranger", user_id(0), user_id(2)])
    assert known(users) == {user_id(1): [4, 2, 2, 5], "stranger": [], user_id(0): [1, 2, 3], user_id(2): []}
    assert users.rows.tolist() == [1, -1, 0, 2]
    assert users.times[0].tolist() == [10, 11, 12, 13]


def test_all_stored_users_come_when_none_is_named_some_at_a_time(store, monkeypatch):
    monkeypatch.setattr(histories, "USERS_AT_A_TIME", 3)
    chunks = list(stored(store))
    assert [len(users.ids) for users in chunks] == [3, 1]
    assert [items for users in chunks for items in known(users).values()] == HISTORIES


def test_events_of_a_file_are_sorted_by_time_and_equal_times_by_row(store, tmp_path):
    rows = [("b", 3, 30), ("a", 1, 20), ("b", 1, 10), ("a", 2, 10), ("b", 2, 10)]
    path = history(tmp_path, "user,item,time\n" + "".join(f"{u},{item_id(i)},{t}\n" for u, i, t in rows))
    users = together(from_file(store, path))
    assert known(users) == {"b": [1, 2, 3], "a": [2, 1]}  # users as they first appear
    assert users.times[0].tolist() == [10, 10, 30]
    assert users.rows.tolist() == [-1, -1]


def test_without_times_the_rows_of_a_file_are_in_order(store, tmp_path):
    path = history(tmp_path, "item\tuser\n" + "".join(f"{item_id(i)}\ta\n" for i in (5, 1, 3)), "history.tsv")
    users = together(from_file(store, path))
    assert known(users) == {"a": [5, 1, 3]}
    assert users.times[0].tolist() == [UNKNOWN_TIME] * 3


def test_items_the_store_does_not_hold_are_left_out_and_counted(store, tmp_path):
    path = history(tmp_path, f"user,item\na,{item_id(1)}\nb,unheard\na,unheard\na,{item_id(2)}\n")
    users = together(from_file(store, path))
    assert known(users) == {"a": [1, 2], "b": []}
    assert users.unknown_events == 2


def test_a_file_replaces_the_stored_history_of_those_it_mentions(store, tmp_path):
    path = history(tmp_path, f"user,item\n{user_id(1)},{item_id(6)}\nnobody asked,{item_id(1)}\n{user_id(0)},unheard\n")
    users = together(from_file(store, path, [user_id(3), user_id(1), "stranger", user_id(0), user_id(1)]))
    assert users.ids == [user_id(3), user_id(1), "stranger", user_id(0), user_id(1)]
    assert [items.tolist() for items in users.items] == [[3], [6], [], [], [6]]
    assert users.rows.tolist() == [3, 1, -1, 0, 1]


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_no_user_is_torn_apart_however_the_rows_arrive(store, tmp_path, monkeypatch, rows):
    events = [(f"u{n % 4}", item_id(1 + n % 6)) for n in range(17)]
    path = tmp_path / "history.parquet"
    pq.write_table(pa.table({"user": [u for u, _ in events], "item": [i for _, i in events]}), path)
    monkeypatch.setattr(engine, "BATCH", rows)
    assert known(together(from_file(store, path))) == {f"u{u}": [1 + n % 6 for n in range(17) if n % 4 == u] for u in range(4)}


def test_odd_ids_stay_what_they_are(store, tmp_path):
    odd = ['say "hi"', "comma, inside", "żółw", "007", " spaced "]
    quoted = ['"' + name.replace('"', '""') + '"' for name in odd]
    path = history(tmp_path, "user,item\n" + "".join(f"{name},{item_id(1)}\n" for name in quoted))
    users = together(from_file(store, path))
    assert users.ids == odd


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "history.csv"),
        ("user,item\n", "holds no rows"),
        ("user,product\na,b\n", "no column 'item'"),
        ("user,item,time\na,b,yesterday\n", "history.csv:2: time is not a whole number"),
        ("user,item\na,b\n,b\n", "history.csv:3: user is empty"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(store, tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        list(from_file(store, history(tmp_path, text)))


def test_a_file_of_another_kind_is_refused(store, tmp_path):
    with pytest.raises(UserError, match=r"ending in \.csv, \.tsv, \.parquet, \.arrow, got"):
        list(from_file(store, tmp_path / "history.xlsx"))


def test_ids_are_read_from_lines_and_from_columns(store, tmp_path):
    assert list(read_ids(history(tmp_path, "a b\r\n\n 7\nlast", "ids.txt"), store, "user")) == ["a b", " 7", "last"]
    assert list(read_ids(history(tmp_path, "item,user\nx,a\ny,b\n", "ids.csv"), store, "user")) == ["a", "b"]
    with pytest.raises(UserError, match="Cannot read ids from"):
        list(read_ids(tmp_path / "absent.txt", store, "item"))


@pytest.mark.parametrize(
    ("times", "unit", "expected"),
    [
        (["1970-01-01T00:00:20Z", "1970-01-01 00:00:10"], "seconds", [10, 20]),
        (["1970-01-01T00:00:20Z", "1970-01-01 00:00:10"], "milliseconds", [10_000, 20_000]),
        (["1600000000000", "1500000000000"], "seconds", [1_500_000_000, 1_600_000_000]),
        (["1600000000", "1500000000"], "milliseconds", [1_500_000_000_000, 1_600_000_000_000]),
    ],
)
def test_times_of_a_file_come_in_the_unit_of_the_store(tmp_path, times, unit, expected):
    folder = store_of(tmp_path / "store", HISTORIES, items=6).folder
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"time_unit": unit}))
    rows = "".join(f"a,{item_id(i)},{time}\n" for i, time in enumerate(times, 1))
    users = together(from_file(open_store(folder), history(tmp_path, "user,item,time\n" + rows)))
    assert users.times[0].tolist() == expected and known(users) == {"a": [2, 1]}


def test_a_file_may_have_the_columns_that_the_store_was_made_from(tmp_path):
    folder = store_of(tmp_path / "store", HISTORIES, items=6).folder
    card = json.loads((folder / "card.json").read_text())
    columns = {"user": "customer", "item": "product", "order": "place", "time": "when"}
    (folder / "card.json").write_text(json.dumps(card | {"columns": columns}))
    store = open_store(folder)
    text = f"when,product,item,customer\n20,{item_id(1)},x,a\n10,{item_id(2)},y,a\n"
    assert known(together(from_file(store, history(tmp_path, text)))) == {"a": [2, 1]}
    assert known(together(from_file(store, history(tmp_path, f"user,item\nb,{item_id(3)}\n")))) == {"b": [3]}


def test_ids_may_stand_in_the_column_that_the_store_was_made_from(tmp_path):
    folder = store_of(tmp_path / "store", HISTORIES, items=6).folder
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | {"columns": {"user": "customer", "item": "product"}}))
    path = history(tmp_path, "product,customer\nx,a\n", "ids.csv")
    assert list(read_ids(path, open_store(folder), "user")) == ["a"]
    assert list(read_ids(path, open_store(folder), "item")) == ["x"]


RULES = {
    "by seconds": ({}, {"user": "u", "item": "i", "time": "t"}),
    "by the order, whatever the time": ({}, {"user": "u", "item": "i", "time": "t", "order": "o"}),
    "above a value": ({"min_value": 3.0}, {"user": "u", "item": "i", "time": "t", "value": "v"}),
    "of a kind": ({"kinds": ("buy",)}, {"user": "u", "item": "i", "time": "t", "kind": "k"}),
    "exact repeats": ({"duplicates": "drop_exact"}, {"user": "u", "item": "i", "order": "o"}),
    "first of each": ({"duplicates": "first"}, {"user": "u", "item": "i", "time": "t"}),
    "last of each": ({"duplicates": "last"}, {"user": "u", "item": "i", "time": "t"}),
}


@pytest.mark.parametrize("case", RULES)
@pytest.mark.parametrize("written", ["seconds", "fractions of a second", "milliseconds"])
def test_the_file_a_store_was_made_from_gives_the_histories_of_the_store(tmp_path, case, written):
    rules, select = RULES[case]
    generator = np.random.default_rng(5)
    rows = 60
    clock = generator.permutation(rows)
    texts = {
        "seconds": [str(1_600_000_000 + 7 * t) for t in clock],
        "fractions of a second": [f"2024-01-15T10:00:{t // 10:02}.{t % 10}00" for t in clock],
        "milliseconds": [str(1_600_000_000_000 + 7 * t) for t in clock],
    }
    columns = {
        "u": [f"u{n}" for n in generator.integers(0, 4, rows)],
        "i": [f"i{n}" for n in generator.integers(0, 6, rows)],
        "t": texts[written],
        "o": generator.permutation(rows).tolist(),
        "v": generator.integers(1, 6, rows).tolist(),
        "k": ["buy" if n else "see" for n in generator.integers(0, 3, rows)],
    }
    path = tmp_path / "events.csv"
    path.write_text(
        "\n".join([",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]) + "\n"
    )
    raw = RawTables(RawTable((path,), Text(",", header=True), select), time="auto")
    store = open_store(prepare(raw, {}, Prepare(**rules), LeaveOneOut(), tmp_path))
    from_store, read = together(stored(store)), together(from_file(store, path))
    assert known(read) == known(from_store)
    assert {u: t.tolist() for u, t in zip(read.ids, read.times, strict=True)} == {
        u: t.tolist() for u, t in zip(from_store.ids, from_store.times, strict=True)
    }
