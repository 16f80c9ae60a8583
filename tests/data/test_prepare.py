import errno
import json
import multiprocessing
import os
import random
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from turborec.data import prepare as prepare_module
from turborec.data.clean import ITEM_FACTOR, PRIME, USER_FACTOR
from turborec.data.prepare import Prepare, prepare, store_key
from turborec.data.schema import UNKNOWN_TIME, Columnar, Lookup, RawTable, RawTables, Text
from turborec.data.split import GlobalTime, ItemHoldout, Labelled, LeaveOneOut, Split, UserHoldout
from turborec.data.store import Store, open_store
from turborec.errors import UserError

COLUMNS = ("user", "item", "time", "order", "value", "kind", "label")


class Event(NamedTuple):
    """A raw event; `time` is None where it is unknown."""

    user: str
    item: str
    time: int | None = None
    order: int = 0
    value: float = 0.0
    kind: str = ""
    label: str = "train"


def tables(path: Path, events: Sequence[Event], columns: Sequence[str] = ("user", "item", "time"), **more: Any) -> RawTables:
    """The events written as TSV, of which these columns are selected."""
    rows = ["\t".join("" if value is None else str(value) for value in event) for event in events]
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8", newline="\n")
    return RawTables(RawTable((path,), Text("\t", COLUMNS), {name: name for name in columns}), **more)


def made(
    folder: Path,
    events: Sequence[Event],
    config: Prepare | None = None,
    columns: Sequence[str] = ("user", "item", "time"),
    split: Split | None = None,
    **more: Any,
) -> Store:
    raw = tables(folder / "events.tsv", events, columns, **more)
    return open_store(prepare(raw, {"kind": "test"}, config or Prepare(), split or LeaveOneOut(), folder))


def histories(store: Store) -> dict[str, list[tuple[str, int | None]]]:
    """What the store holds, in raw ids: items and times of each user."""
    assert np.array_equal(np.diff(store.histories.offsets) > 0, np.ones(store.num_users, bool))
    result = {}
    for row, user in enumerate(store.user_ids.raw(range(store.num_users))):
        span = slice(*store.histories.offsets[row : row + 2].tolist())
        items = store.item_ids.raw(store.histories.items[span] - 1)
        times = [None if time == UNKNOWN_TIME else time for time in store.histories.times[span].tolist()]
        result[user] = list(zip(items, times, strict=True))
    return result


def plain(histories: dict[str, list[tuple[str, int | None]]]) -> dict[str, list[str]]:
    return {user: [item for item, _ in events] for user, events in histories.items()}


# Users long enough for a split, beside the ones a test is about.
CROWD = [Event(f"zz{n}", item, time) for n in range(3) for item, time in (("x", 1), ("y", 2), ("z", 3))]


def of(store: Store, *users: str) -> list[list[str]]:
    return [plain(histories(store))[user] for user in users]


def test_histories_are_in_order_of_time(tmp_path: Path) -> None:
    store = made(tmp_path, [Event("u", "b", 30), Event("u", "c", 10), Event("u", "a", 20), *CROWD])
    assert histories(store)["u"] == [("c", 10), ("a", 20), ("b", 30)]


def test_ids_are_ranks_in_byte_order(tmp_path: Path) -> None:
    names = ["10", "9", "a", "B", "é", "e\u0301", "z", " a", "\U0001f600", "\uffee", "007", "7"]
    store = made(tmp_path, [Event(user, item, 1) for user in names for item in names])
    expected = sorted(names, key=lambda name: name.encode("utf-8"))
    assert store.user_ids.raw(range(store.num_users)) == expected
    assert store.item_ids.raw(range(store.num_items)) == expected
    assert (int(store.histories.items.min()), int(store.histories.items.max())) == (1, len(names))


def test_ties_are_broken_for_each_user_anew_and_favour_no_item(tmp_path: Path) -> None:
    store = made(tmp_path, [Event(f"u{user}", f"i{item}", 5) for user in range(400) for item in range(12)])
    items = store.histories.items.reshape(400, 12).astype(np.float64)
    # Ranks of a random permutation: the mean of 400 has a deviation of 3.45 / 20, a share of 4,400 one of 0.0076.
    assert np.abs(items.mean(axis=0) - 6.5).max() < 4 * 3.45 / 20
    assert abs((np.diff(items) > 0).mean() - 0.5) < 4 * 0.0076
    assert len(np.unique(items, axis=0)) > 390


def test_order_wins_over_time(tmp_path: Path) -> None:
    events = [Event("u", "a", 9, 1), Event("u", "b", None, 2), Event("u", "c", 7, 0)]
    store = made(tmp_path, [*events, *CROWD], columns=("user", "item", "time", "order"))
    assert histories(store)["u"] == [("c", 7), ("a", 9), ("b", None)]


def test_without_times_the_order_of_the_file_counts(tmp_path: Path) -> None:
    store = made(tmp_path, [Event("u", item) for item in ("b", "c", "a", "b")] + CROWD, columns=("user", "item"))
    assert histories(store)["u"] == [("b", None), ("c", None), ("a", None), ("b", None)]
    assert (store.card["time_unit"], store.card["times"]) == (None, None)


def test_history_with_an_unknown_time_is_in_the_order_of_the_file(tmp_path: Path) -> None:
    events = [Event("u", "b", 9), Event("v", "b", 9), Event("u", "a"), Event("u", "c", 3), Event("v", "a", 3)]
    store = made(tmp_path, events + CROWD)
    assert histories(store)["u"] == [("b", 9), ("a", None), ("c", 3)]
    assert of(store, "v") == [["a", "b"]]


def test_a_time_of_zero_is_a_time(tmp_path: Path) -> None:
    store = made(tmp_path, [Event("u", "b", 1), Event("u", "a", 0), *CROWD])
    assert histories(store)["u"] == [("a", 0), ("b", 1)]


def test_labels_come_before_times_where_they_split(tmp_path: Path) -> None:
    events = [Event("u", "t", 1, label="test"), Event("u", "v", 2, label="valid"), Event("u", "b", 4), Event("u", "a", 3)]
    columns = ("user", "item", "time", "label")
    store = made(tmp_path, events, columns=columns, split=Labelled())
    assert of(store, "u") == [["a", "b", "v", "t"]]
    assert (store.cuts.tolist(), store.parts.tolist()) == ([[2, 3]], [7])
    assert of(made(tmp_path, events, columns=columns, split=LeaveOneOut()), "u") == [["t", "v", "a", "b"]]


def test_cold_items_come_last_and_are_never_trained_on(tmp_path: Path) -> None:
    events = [Event(f"u{u}", f"i{i:02}", (7 * i + u) % 20) for u in range(4) for i in range(20)]
    store = made(tmp_path, events, split=ItemHoldout(validation=0.1, test=0.2, seed=1))
    groups = ItemHoldout(validation=0.1, test=0.2, seed=1).labels(20)
    for user in range(4):
        start, end = store.histories.offsets[user : user + 2].tolist()
        labels = groups[store.histories.items[start:end] - 1].tolist()
        assert labels == [0] * 14 + [1] * 2 + [2] * 4
        assert store.cuts[user].tolist() == [start + 14, start + 16]
        for group in range(3):
            times = store.histories.times[start:end][np.asarray(labels) == group]
            assert (np.diff(times) >= 0).all()


def test_kinds_and_values_are_chosen(tmp_path: Path) -> None:
    events = [Event("u", f"i{n % 4}", n, value=n / 2, kind=["buy", "it's", ""][n % 3]) for n in range(30)]
    config = Prepare(kinds=("buy", "it's"), min_value=3.5)
    store = made(tmp_path, events, config, columns=("user", "item", "time", "value", "kind"))
    kept = [event for event in events if event.kind and event.value >= 3.5]
    assert histories(store) == {"u": [(event.item, event.time) for event in kept]}
    assert store.card["counts"]["dropped"] == {"other_kinds": 10, "below_min_value": 5, "duplicates": 0, "outside_core": 0}


def test_unknown_value_is_below_every_threshold(tmp_path: Path) -> None:
    events = [Event("u", "a", 1, value=1), Event("u", "b", 2, value="")]  # type: ignore[arg-type]
    crowd = [event._replace(value=1.0) for event in CROWD]
    store = made(tmp_path, [*events, *crowd], Prepare(min_value=0.0), columns=("user", "item", "time", "value"))
    assert of(store, "u") == [["a"]]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("keep", ["a", "a", "b", "a", "b"]),
        ("drop_exact", ["a", "b", "a", "b"]),
        ("first", ["a", "b"]),
        ("last", ["a", "b"]),
    ],
)
def test_duplicates_follow_the_policy(tmp_path: Path, policy: Any, expected: list[str]) -> None:
    events = [Event("u", "a", 1), Event("u", "b", 2), Event("u", "a", 1), Event("u", "a", 3), Event("u", "b", 4)]
    store = made(tmp_path, events + CROWD, Prepare(duplicates=policy))
    assert of(store, "u") == [expected]
    times = [time for _, time in histories(store)["u"]]
    assert times == {"keep": [1, 1, 2, 3, 4], "drop_exact": [1, 2, 3, 4], "first": [1, 2], "last": [3, 4]}[policy]
    assert store.card["counts"]["dropped"]["duplicates"] == 5 - len(expected)


def test_events_of_unknown_time_are_exact_repeats_by_their_order_only(tmp_path: Path) -> None:
    events = [Event("u", "a", None, 1), Event("u", "a", None, 2), Event("u", "a", None, 1), Event("u", "b", 5, 9)]
    config = Prepare(duplicates="drop_exact")
    assert of(made(tmp_path, [*events, *CROWD], config, ("user", "item", "time", "order")), "u") == [["a", "a", "b"]]
    assert of(made(tmp_path, [*events, *CROWD], config), "u") == [["a", "a", "a", "b"]]


def test_repeat_that_stays_keeps_its_own_label_and_order(tmp_path: Path) -> None:
    repeats = [Event("u", "a", 5, 1, label="test"), Event("u", "a", 5, 3), Event("u", "b", 5, 2), Event("u", "c", 6, 4)]
    events = [*repeats, Event("u", "d", 7, label="valid"), Event("u", "e", 8, label="test")]
    store = made(tmp_path, events, Prepare(duplicates="drop_exact"), ("user", "item", "time", "order", "label"), Labelled())
    assert of(store, "u") == [["b", "a", "c", "d", "e"]]


def core(events: list[Event], user_events: int, item_events: int) -> list[Event]:
    """One round after the other, until nothing changes."""
    while True:
        users, items = Counter(event.user for event in events), Counter(event.item for event in events)
        kept = [event for event in events if users[event.user] >= user_events and items[event.item] >= item_events]
        if kept == events:
            return kept
        events = kept


def test_core_is_taken_to_its_fixed_point(tmp_path: Path) -> None:
    chain = [Event(f"u{n}", f"i{n + step}", n) for n in range(12) for step in (0, 1)]
    store = made(tmp_path, chain + CROWD, Prepare(min_user_events=2, min_item_events=2))
    assert set(histories(store)) == {"zz0", "zz1", "zz2"}
    assert store.card["counts"]["dropped"]["outside_core"] == len(chain)


NAMES = st.sampled_from(["1", "10", "9", "a", "A", "é"])
EVENTS = st.lists(
    st.builds(
        Event,
        user=NAMES,
        item=NAMES,
        time=st.none() | st.integers(0, 4) | st.integers(0, 4),
        order=st.integers(0, 4),
        value=st.integers(0, 3),
        kind=st.just(""),
        label=st.just("train"),
    ),
    max_size=40,
)


def reference(events: list[Event], config: Prepare, by: str) -> dict[str, list[tuple[str, int | None]]]:
    """Histories by lists and sorts alone; `by` is the column that orders them."""
    numbered = list(enumerate(event for event in events))
    numbered = [(place, event) for place, event in numbered if config.min_value is None or event.value >= config.min_value]
    timeless = {event.user for _, event in numbered if event.time is None}

    def moment(place: int, event: Event) -> int:
        if by == "order":
            return event.order
        return event.time if event.time is not None and event.user not in timeless else place

    def key(entry: tuple[int, Event]) -> tuple[int, int]:
        place, event = entry
        return moment(place, event), -1 if event.time is None else event.time

    numbered.sort(key=key)
    if config.duplicates == "last":
        numbered.reverse()
    seen, kept = set(), []
    for place, event in numbered:
        when = ("time", event.time) if event.time is not None else ("moment", moment(place, event))
        mark = (event.user, event.item) + (when if config.duplicates == "drop_exact" else ())
        if config.duplicates == "keep" or mark not in seen:
            kept.append((place, event))
        seen.add(mark)
    left = core([event for _, event in kept], config.min_user_events, config.min_item_events)
    users, items = (sorted({getattr(event, name) for event in left}, key=str.encode) for name in ("user", "item"))

    def tie(event: Event) -> int:
        number = users.index(event.user) * USER_FACTOR + (items.index(event.item) + 1) * ITEM_FACTOR
        return pow(number, 5, PRIME)

    kept = [(place, event) for place, event in kept if event in left]
    kept.sort(key=lambda entry: (*key(entry), tie(entry[1])))
    return {user: [(event.item, event.time) for _, event in kept if event.user == user] for user in users}


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    events=EVENTS,
    duplicates=st.sampled_from(["keep", "drop_exact", "first", "last"]),
    cores=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    least=st.none() | st.just(1.0),
    by=st.sampled_from(["time", "order"]),
)
def test_store_is_what_lists_and_sorts_make(
    tmp_path: Path, events: list[Event], duplicates: Any, cores: tuple[int, int], least: float | None, by: str
) -> None:
    config = Prepare(duplicates=duplicates, min_user_events=cores[0], min_item_events=cores[1], min_value=least)
    events = events + [event._replace(value=1.0) for event in CROWD]
    columns = ("user", "item", "time", "value", *(("order",) if by == "order" else ()))
    store = made(tmp_path, events, config, columns)
    expected = reference(events, config, by)
    assert histories(store) == expected
    assert list(histories(store)) == list(expected)
    dropped = sum(store.card["counts"]["dropped"].values())
    assert store.card["rows"]["events"]["rows"] == dropped + store.card["counts"]["events"]


def digest(store: Store) -> dict[str, str]:
    return {name: fact["sha256"] for name, fact in store.card["files"].items()}


@pytest.mark.parametrize(
    ("by", "duplicates"), [("time", "keep"), ("order", "drop_exact"), ("time", "first"), ("order", "last"), ("order", "keep")]
)
def test_neither_the_order_of_rows_nor_threads_change_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, duplicates: Any
) -> None:
    draw = random.Random(1)
    events = [
        Event(f"u{draw.randrange(40)}", f"i{draw.randrange(60)}", draw.randrange(30), draw.randrange(9)) for _ in range(2000)
    ]
    columns = ("user", "item", "time", *(("order",) if by == "order" else ()))
    config = Prepare(duplicates=duplicates, min_user_events=3, min_item_events=3)
    stores = []
    for threads in (1, 4):
        monkeypatch.setattr(os, "cpu_count", lambda threads=threads: threads)
        draw.shuffle(events)
        stores.append(made(tmp_path, events, config, columns, LeaveOneOut()))
    assert stores[0].key != stores[1].key
    assert digest(stores[0]) == digest(stores[1])


def test_items_have_their_attributes_in_item_order(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("id,title,text\nz,Zed,\ny,Why,1\nq,No,2\ny,Again,3\n", encoding="utf-8")
    items = RawTable((tmp_path / "items.csv",), Text(",", header=True), {"item": "id", "title": "title", "text": "text"})
    store = made(tmp_path, CROWD, items=items)
    assert pq.read_table(store.folder / "items.parquet").to_pylist() == [
        {"item": "x", "title": None, "text": None},
        {"item": "y", "title": "Why", "text": "1"},
        {"item": "z", "title": "Zed", "text": None},
    ]


def test_card_tells_what_was_done(tmp_path: Path) -> None:
    events = [Event("u", item, time) for item, time in (("x", 4), ("y", 5), ("x", 9), ("y", 11))]
    raw = tables(tmp_path / "events.tsv", [*events, *CROWD], time="milliseconds", terms="Ours.")
    with (tmp_path / "events.tsv").open("a", encoding="utf-8") as file:
        file.write("\nbad\n")
    folder = prepare(raw, {"kind": "test", "size": 3}, Prepare(bad_rows=0.1), LeaveOneOut(), tmp_path)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert folder == tmp_path / "stores" / card["key"][:16]
    source = card["source"]
    assert (source["kind"], source["size"], source["terms"], source["files"][0]["name"]) == ("test", 3, "Ours.", "events.tsv")
    assert card["rows"]["events"] == {"rows": 14, "blank": 1, "left_out": 0, "rejected": {"1 columns instead of 7": 1}}
    assert {name: card["counts"][name] for name in ("users", "items", "events")} == {"users": 4, "items": 3, "events": 13}
    assert card["counts"]["users_taking_part"] == {"train": 4, "validation": 4, "test": 4}
    assert (card["time_unit"], card["times"]) == ("milliseconds", [1, 11])
    assert card["tie_rule"].startswith("by time, ties in an order of items drawn for each user")
    assert card["history_lengths"] == {"0.0": 3, "0.25": 3, "0.5": 3, "0.75": 3, "0.9": 3, "0.99": 3, "1.0": 4}
    assert "memory_mb" not in card["prepare"] and card["prepare"]["bad_rows"] == 0.1
    assert card["split"] == {"kind": "leave_one_out"}
    assert set(card["files"]) == {path.name for path in folder.iterdir()} - {"card.json"}
    lines = (folder / "quarantine.tsv").read_text(encoding="utf-8").splitlines()
    assert lines == ["file\tline\treason\trow", "events.tsv\t15\t1 columns instead of 7\tbad"]


def test_iso_times_split_by_date(tmp_path: Path) -> None:
    days = [Event("u", f"i{day}", f"2020-01-0{day}T12:00") for day in range(1, 7)]  # type: ignore[arg-type]
    split = GlobalTime(validation_from="2020-01-04", test_from="2020-01-06")
    store = made(tmp_path, days, split=split, time="iso")
    assert (store.cuts.tolist(), store.parts.tolist()) == ([[3, 5]], [7])
    assert store.histories.times[0] == datetime(2020, 1, 1, 12, tzinfo=UTC).timestamp() * 1000


def test_the_same_inputs_are_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(tmp_path, CROWD)
    monkeypatch.setattr(prepare_module, "_make", pytest.fail)
    assert made(tmp_path, CROWD, Prepare(memory_mb=500)).folder == first.folder


def test_values_are_kept_beside_their_events_where_that_is_asked_for(tmp_path: Path) -> None:
    draw = random.Random(0)
    events = [Event(f"u{n % 20}", f"i{draw.randrange(9)}", draw.randrange(50), value=n / 2) for n in range(300)]
    events[7] = events[7]._replace(value="")  # type: ignore[arg-type]
    columns = ("user", "item", "time", "value")
    plain, kept = (made(tmp_path, events, Prepare(values=values), columns) for values in (False, True))
    assert plain.values is None and kept.values is not None and kept.values.dtype == "float32"
    for name in ("offsets.npy", "items.npy", "times.npy", "cuts.npy", "parts.npy"):
        assert plain.card["files"][name] == kept.card["files"][name]
    assert kept.card["values"] == {"known": 299, "least": 0.0, "greatest": 149.5} and "values" not in plain.card
    raw = {(int(e.user[1:]), e.item, e.time, e.value) for e in events if e.value != ""}
    owner = np.repeat(np.arange(20), np.diff(kept.histories.offsets))
    users, items = kept.user_ids.raw(owner), kept.item_ids.raw(kept.histories.items - 1)
    rows = zip(users, items, kept.histories.times.tolist(), kept.values.tolist(), strict=True)
    assert {(int(u[1:]), i, t, v) for u, i, t, v in rows if v == v} == raw  # NaN is no value
    damage(kept.folder / "values.npy", "flipped")
    with pytest.raises(UserError, match=r"is damaged: values\.npy"):
        open_store(kept.folder)


@pytest.mark.parametrize(("policy", "expected"), [("drop_exact", 1.0), ("first", 1.0), ("last", 3.0)])
def test_of_events_that_differ_in_their_value_alone_the_same_one_stays(tmp_path: Path, policy: str, expected: float) -> None:
    odd = [Event("u", "x", 5, value=value) for value in (3.0, 1.0, 2.0)]
    columns = ("user", "item", "time", "value")
    for number, order in enumerate(([0, 1, 2], [1, 2, 0], [2, 1, 0])):
        rows = [*(odd[place] for place in order), *CROWD]
        config = Prepare(duplicates=policy, values=True)  # type: ignore[arg-type]
        folder = tmp_path / str(number)
        folder.mkdir()
        store = made(folder, rows, config, columns)
        (user,) = store.user_ids.find(["u"])
        values = store.values
        assert values is not None and values[store.histories.offsets[user]] == expected


def test_values_too_large_for_a_float32_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="1e\\+39 does not fit in the float32"):
        made(tmp_path, [*CROWD, Event("u", "x", 1, value=1e39)], Prepare(values=True), ("user", "item", "time", "value"))
    blank = [event._replace(value="") for event in CROWD]  # type: ignore[arg-type]
    with pytest.raises(UserError, match="No event that is left has a value"):
        made(tmp_path, blank, Prepare(values=True), ("user", "item", "time", "value"))


def test_what_decides_the_content_decides_the_key(tmp_path: Path) -> None:
    def key(config: Prepare | None = None, split: Split | None = None, content: str = "a", **more: Any) -> str:
        raw = tables(tmp_path / "events.tsv", CROWD, **more)
        return store_key(raw, [{"sha256": content}], config or Prepare(), split or LeaveOneOut())

    different = [
        key(),
        key(content="b"),
        key(Prepare(min_user_events=2)),
        key(Prepare(values=True)),
        key(split=UserHoldout()),
        key(split=UserHoldout(seed=1)),
        key(time="milliseconds"),
        key(columns=("user", "item")),
    ]
    assert len(set(different)) == len(different)
    assert {key(terms="Others."), key(Prepare(memory_mb=500))} == {key()}
    assert "values" not in Prepare().rules()  # or every store made before there was such a rule would be made again


def test_the_place_and_name_of_a_file_do_not_decide_the_key(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = tables(tmp_path / "elsewhere" / "other.tsv", CROWD)
    assert prepare(moved, {}, Prepare(), LeaveOneOut(), tmp_path) == made(tmp_path, CROWD).folder


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        del content[-1:]
    else:
        content[-1] ^= 1
    path.write_bytes(content)


def test_store_cut_short_is_not_used_again(tmp_path: Path) -> None:
    damage(made(tmp_path, CROWD).folder / "items.npy", "cut")
    with pytest.raises(UserError, match=r"is damaged: items\.npy has .* Delete the folder"):
        made(tmp_path, CROWD)


@pytest.mark.parametrize(
    ("events", "columns", "config", "split", "message"),
    [
        (CROWD, ("user", "item", "time"), Prepare(kinds=("buy",)), LeaveOneOut(), "prepare.kinds needs a column 'kind'"),
        (CROWD, ("user", "item", "time"), Prepare(min_value=1.0), LeaveOneOut(), "prepare.min_value needs a column 'value'"),
        (CROWD, ("user", "item", "time"), Prepare(values=True), LeaveOneOut(), "prepare.values needs a column 'value'"),
        (CROWD, ("user", "item", "time"), Prepare(), Labelled(), "split labelled needs a column 'label'"),
        (CROWD, ("user", "item"), Prepare(), GlobalTime(), "split global_time needs a column 'time'"),
        (CROWD[:2], ("user", "item", "time"), Prepare(), LeaveOneOut(), "No user takes part in validation .* 2 events at most"),
        ([Event("u", "x", n) for n in range(9)], ("user", "item", "time"), Prepare(), LeaveOneOut(), "Only one item is left"),
        (
            CROWD,
            ("user", "item", "time", "value"),
            Prepare(min_value=1.0),
            LeaveOneOut(),
            "No event is left of 9 rows, of which went: 9 below min value. There must be two items",
        ),
        (
            [event._replace(kind="buy") for event in CROWD],
            ("user", "item", "kind"),
            Prepare(kinds=("bye",)),
            LeaveOneOut(),
            "9 other kinds. The kinds there are: 'buy'",
        ),
        (CROWD, ("user", "item", "time"), Prepare(min_user_events=4), LeaveOneOut(), "of which went: 9 outside core"),
        (CROWD, ("user", "item", "time"), Prepare(), UserHoldout(validation=0.5, test=0.4), "leaves none for training"),
        ([Event("u", "", 1)], ("user", "item", "time"), Prepare(), LeaveOneOut(), "1 of 1 rows are bad"),
    ],
)
def test_data_that_cannot_serve_is_refused_and_leaves_nothing(
    tmp_path: Path, events: list[Event], columns: Sequence[str], config: Prepare, split: Split, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        made(tmp_path, events, config, columns, split)
    assert [path.name for path in (tmp_path / "stores").iterdir() if path.suffix != ".lock"] == []


def test_one_user_is_enough_to_leave_one_out(tmp_path: Path) -> None:
    store = made(tmp_path, [Event("u", f"i{n}", n) for n in range(5)], split=LeaveOneOut())
    assert (store.cuts.tolist(), store.parts.tolist()) == ([[3, 4]], [7])


def test_missing_file_is_refused(tmp_path: Path) -> None:
    raw = RawTables(RawTable((tmp_path / "none.tsv",), Text("\t", COLUMNS), {"user": "user", "item": "item"}))
    with pytest.raises(UserError, match=r"none\.tsv does not exist"):
        prepare(raw, {}, Prepare(), LeaveOneOut(), tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"kinds": []}, {"bad_rows": 1.5}, {"memory_mb": 1}, {"min_user_events": 0}, {"duplicates": "most"}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Prepare.model_validate_json(json.dumps(wrong))


@pytest.mark.parametrize("step", ["write_events", "write_ids", "write_cuts", "seal"])
def test_full_disk_leaves_no_store_and_the_next_attempt_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(prepare_module, step, full)
        with pytest.raises(UserError, match=r"disk of .* is full: free some space"):
            made(tmp_path, CROWD)
    assert made(tmp_path, CROWD).num_users == 3
    assert len(list((tmp_path / "stores").iterdir())) == 1


def test_disk_of_any_size_holds_a_whole_store_or_none(tmp_path: Path) -> None:
    (disk := tmp_path / "disk").mkdir()
    raw = tables(tmp_path / "events.tsv", [Event(f"u{n % 100}", f"i{n % 77}", n) for n in range(20_000)])
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True, check=False).returncode
    ):
        pytest.skip("a small disk: mounting one needs root")
    left = []
    try:
        for kilobytes in (64, 256, 1024, 1536, 2048, 16384):
            subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True)
            try:
                prepare(raw, {}, Prepare(), LeaveOneOut(), disk)
            except UserError as error:
                assert "is full: free some space" in str(error)
            left.append([path.suffix for path in (disk / "stores").iterdir()])
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert left[0] == [".lock"] and left[-1] == [""]
    assert all(names in ([".lock"], [""]) for names in left)


def test_leftovers_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    folder = made(tmp_path, CROWD).folder
    expected = digest(open_store(folder))
    folder.rename(folder.with_name(f".{folder.name}.building"))
    folder.with_name(f".{folder.name}.work").mkdir()
    assert digest(made(tmp_path, CROWD)) == expected
    assert list(folder.parent.iterdir()) == [folder]


def prepare_slowly(folder: Path, began: Any, done: Any) -> None:
    """Prepare in a process of its own, holding on in the middle until the other has come."""
    clean = prepare_module._clean

    def slow(*arguments: Any) -> Any:
        done.put("cleaned")
        began.wait(timeout=60)
        return clean(*arguments)

    prepare_module._clean = slow
    raw = RawTables(RawTable((folder / "events.tsv",), Text("\t", COLUMNS), {"user": "user", "item": "item"}))
    done.put(str(prepare(raw, {}, Prepare(), LeaveOneOut(), folder)))


def test_two_processes_prepare_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tables(tmp_path / "events.tsv", CROWD)
    spawn = multiprocessing.get_context("spawn")
    began, done = spawn.Event(), spawn.Queue()
    processes = [spawn.Process(target=prepare_slowly, args=(tmp_path, began, done)) for _ in range(2)]
    for process in processes:
        process.start()
    said, told = "", [done.get(timeout=60)]
    while "waiting for it" not in said:
        said += capfd.readouterr().err
    began.set()
    told += [done.get(timeout=60) for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert told.count("cleaned") == 1
    assert len(set(told)) == 2
    assert [path.name for path in (tmp_path / "stores").iterdir()] == [Path(told[-1]).name]


IN_LITTLE_MEMORY = """
    import resource, sys, time
    from pathlib import Path
    limit = int(sys.argv[2]) * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    from turborec.data.prepare import Prepare, prepare
    from turborec.data.schema import Columnar, RawTable, RawTables
    from turborec.data.split import LeaveOneOut
    path, began = Path(sys.argv[1]), time.monotonic()
    table = RawTable((path,), Columnar(), {"user": "user", "item": "item", "time": "time"})
    config = Prepare(duplicates="drop_exact", min_user_events=5, min_item_events=5, memory_mb=int(sys.argv[3]))
    print(prepare(RawTables(table), {}, config, LeaveOneOut(), path.parent))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{peak} MiB at most, {time.monotonic() - began:.0f} s", file=sys.stderr)
"""


def simulated(path: Path, events: int) -> None:
    """Events of `events / 160` users with `events / 400` items, both skewed, in Parquet."""
    draw = np.random.default_rng(0)
    users, items, writer = events // 160, events // 400, None
    for start in range(0, events, 10**6):
        size = min(10**6, events - start)
        user = (users * draw.random(size) ** 1.5).astype(np.int64)
        item = (items * draw.random(size) ** 3).astype(np.int64)
        time = 10**9 + draw.integers(0, 5 * 10**8, size)
        table = pa.table({"user": np.char.add("u", user.astype(str)), "item": item, "time": time})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


@pytest.mark.parametrize(
    ("events", "limit_mb", "memory_mb"), [(10**6, 640, 250), pytest.param(32 * 10**6, 2048, 1000, marks=pytest.mark.slow)]
)
@pytest.mark.timeout(1200)
def test_memory_stays_below_an_enforced_limit(tmp_path: Path, events: int, limit_mb: int, memory_mb: int) -> None:
    simulated(tmp_path / "events.parquet", events)
    # The limit counts what is reserved, so pyarrow must not reserve a gibibyte beforehand, nor BLAS buffers a thread.
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(IN_LITTLE_MEMORY), str(tmp_path / "events.parquet")]
    done = subprocess.run(
        [*command, str(limit_mb), str(memory_mb)], env=environment, capture_output=True, text=True, check=False
    )
    print(done.stderr)
    assert done.returncode == 0, done.stderr
    store = open_store(Path(done.stdout.strip()))
    assert store.card["counts"]["dropped"]["duplicates"] + store.card["counts"]["events"] > 0.99 * events
    assert (np.diff(store.histories.offsets) >= 5).all()


def test_each_file_may_have_a_text_of_its_own(tmp_path: Path) -> None:
    paths = [tmp_path / f"{part}.tsv" for part in ("train", "valid", "test")]
    for part, path in enumerate(paths):
        path.write_text("".join(f"u{user}\ti{(user + place + 4 * part) % 9}\n" for user in range(3) for place in range(4)))
    layout, select = Text("\t", ("user", "item")), {"user": "user", "item": "item"}
    table = RawTable(tuple(paths), layout, select, constants={"label": ("train", "valid", "test")})
    store = open_store(prepare(RawTables(table), {}, Prepare(), Labelled(), tmp_path))
    assert (store.cuts - store.histories.offsets[:-1, None]).tolist() == [[4, 8]] * 3
    assert store.item_ids.raw(store.histories.items[:12] - 1) == [f"i{n % 9}" for n in range(12)]
    other = RawTable(tuple(paths), layout, select, constants={"label": ("test", "valid", "train")})
    assert store_key(RawTables(table), [], Prepare(), Labelled()) != store_key(RawTables(other), [], Prepare(), Labelled())


def looked_up(folder: Path, events: str, names: str) -> RawTables:
    """Events whose items are numbers that another file names."""
    (folder / "events.tsv").write_text(events)
    (folder / "names.tsv").write_text(names)
    told = RawTable((folder / "names.tsv",), Text("\t", ("name", "number")), {"key": "number", "value": "name"})
    layout = Text("\t", ("user", "number", "key", "value"))  # names that the lookup has, too
    return RawTables(RawTable((folder / "events.tsv",), layout, {"user": "user"}, lookups={"item": Lookup("number", told)}))


def test_ids_are_looked_up_in_another_file(tmp_path: Path) -> None:
    raw = looked_up(tmp_path, "".join(f"u\t{n % 3}\tk\tv\n" for n in range(6)), "plum\t0\nfig\t1\npear\t2\nother\t1\n")
    store = open_store(prepare(raw, {}, Prepare(), LeaveOneOut(), tmp_path))
    assert of(store, "u") == [["plum", "fig", "pear"] * 2]
    assert store.card["rows"]["events_item"]["rows"] == 4
    assert [fact["name"] for fact in store.card["source"]["files"]] == ["names.tsv", "events.tsv"]


def test_id_that_is_looked_up_in_vain_is_a_bad_row(tmp_path: Path) -> None:
    raw = looked_up(tmp_path, "".join(f"u\t{n}\t\t\n" for n in range(5)), "plum\t0\nfig\t1\npear\t2\n\t3\nx\n")
    with pytest.raises(UserError, match=r"1 of 5 rows are bad.*\n  names\.tsv:5: 1 columns instead of 2: x\n"):
        prepare(raw, {}, Prepare(), LeaveOneOut(), tmp_path)
    store = open_store(prepare(raw, {}, Prepare(bad_rows=0.5), LeaveOneOut(), tmp_path))
    assert of(store, "u") == [["plum", "fig", "pear"]]
    quarantine = (store.folder / "quarantine.tsv").read_text().splitlines()
    assert quarantine[1:] == [
        "names.tsv\t5\t1 columns instead of 2\tx",
        "events.tsv\t4\titem is not in names.tsv\tu\\t",
        "events.tsv\t5\titem is not in names.tsv\tu\\t",
    ]


@pytest.mark.data
def test_movielens_1m_keeps_its_published_counts_and_order(data_folder: Path, tmp_path: Path) -> None:
    path = data_folder / "ml-1m" / "interactions.parquet"
    raw = RawTables(RawTable((path,), Columnar(), {"user": "user_id", "item": "item_id", "order": "position"}))
    store = open_store(prepare(raw, {"kind": "table"}, Prepare(min_user_events=5, min_item_events=5), LeaveOneOut(), tmp_path))
    assert (store.num_users, store.num_items, len(store.histories.items)) == (6040, 3416, 999_611)
    rows = pq.read_table(path, columns=["user_id", "item_id", "position"]).sort_by(
        [("user_id", "ascending"), ("position", "ascending")]
    )
    expected = np.asarray(rows["item_id"])[np.asarray(rows["user_id"]) == 1]
    row = int(store.user_ids.find(["1"])[0])
    span = slice(*store.histories.offsets[row : row + 2].tolist())
    assert store.item_ids.raw(store.histories.items[span] - 1) == expected.astype(str).tolist()


def test_milliseconds_read_as_seconds_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "events.csv"
    file.write_text("user,item,time\n" + "".join(f"u{n % 3},i{n},{1_600_000_000_000 + n}\n" for n in range(12)))
    table = RawTable((file,), Text(",", header=True), {"user": "user", "item": "item", "time": "time"})
    with pytest.raises(UserError, match="time_format=milliseconds"):
        prepare(RawTables(table), {}, Prepare(), LeaveOneOut(), tmp_path)
    assert prepare(RawTables(table, time="milliseconds"), {}, Prepare(), LeaveOneOut(), tmp_path).is_dir()


def test_seconds_and_milliseconds_in_one_file_are_told_by_row_and_count(tmp_path: Path) -> None:
    def read(odd: Sequence[int], others: int, unit: str) -> None:
        times = [1_600_000_000_000 // others + n for n in range(12)]
        for place, time in zip((3, 7), odd, strict=True):
            times[place] = time
        file = tmp_path / "events.csv"
        file.write_text("user,item,time\n" + "".join(f"u{n % 3},i{n},{time}\n" for n, time in enumerate(times)))
        table = RawTable((file,), Text(",", header=True), {"user": "user", "item": "item", "time": "time"})
        prepare(RawTables(table, time=unit), {}, Prepare(), LeaveOneOut(), tmp_path)  # type: ignore[arg-type]

    for unit in ("seconds", "auto"):
        with pytest.raises(UserError, match=r"2 of the times \(the first at events\.csv:5\) do\. Bring all times to one unit"):
            read([1_600_000_000_000, 1_600_000_000_001], 1000, unit)
    for unit in ("milliseconds", "auto"):
        with pytest.raises(UserError, match=r"As milliseconds 2 of the times \(the first at events\.csv:5\) would be"):
            read([1_600_000_000, 1_500_000_000], 1, unit)
    read([5, 1_600_000_000_000], 1, "milliseconds")  # a placeholder, such as 0, is no time in seconds


def test_not_a_number_is_no_user(tmp_path: Path) -> None:
    users = [float(n % 3) for n in range(12)] + [float("nan")]
    pq.write_table(pa.table({"user": users, "item": list(range(13))}), tmp_path / "events.parquet")
    table = RawTable((tmp_path / "events.parquet",), Columnar(), {"user": "user", "item": "item"})
    folder = prepare(RawTables(table), {}, Prepare(bad_rows=0.1), LeaveOneOut(), tmp_path)
    store = open_store(folder)
    assert store.user_ids.raw(range(store.num_users)) == ["0", "1", "2"]
    assert sum(store.card["rows"]["events"]["rejected"].values()) == 1
