"""MIND's files as they are: histories once, clicks by time, texts without quoting, bad rows named."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from turborec.data.prepare import Prepare, prepare
from turborec.data.schema import UNKNOWN_TIME
from turborec.data.split import GlobalTime, LeaveOneOut
from turborec.data.store import open_store
from turborec.errors import UserError
from turborec.sources.mind import Config

FIXTURE = Path(__file__).parents[1] / "fixtures" / "mind" / "small"


def prepared(raw, home, config=None, **settings):
    source = config or Config()
    source.download(raw)
    return open_store(prepare(source.parse(raw), {"kind": "mind"}, Prepare(**settings), LeaveOneOut(), home))


def histories(store):
    found = {}
    for user, name in enumerate(store.user_ids.raw(range(store.num_users))):
        span = slice(*store.histories.offsets[user : user + 2])
        items = store.item_ids.raw(i - 1 for i in store.histories.items[span])
        times = [None if t == UNKNOWN_TIME else clock(t) for t in store.histories.times[span].tolist()]
        found[name] = list(zip(items, times, strict=True))
    return found


def clock(milliseconds):
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%d %H:%M:%S")


def test_a_history_stands_once_and_its_clicks_follow_by_time(tmp_path):
    assert histories(prepared(FIXTURE, tmp_path)) == {
        "U1": [
            *(("N1", None), ("N2", None), ("N1", None), ("N3", None)),
            *(("N6", "11 12:59:59"), ("N4", "12 14:14:46"), ("N8", "15 08:01:02")),
        ],
        # Two stories of one impression are in its order; midnight and noon are twelve.
        "U2": [("N2", None), ("N5", None), ("N1", "09 00:05:01"), ("N4", "09 00:05:01"), ("N3", "14 09:00:00")],
        "U3": [("N5", "13 05:53:12"), ("N6", "14 09:00:01")],
        "U4": [("N6", None), ("N4", "15 10:00:00")],
        "U5": [("N7", None), ("N8", None), ("N2", None), ("N3", "15 13:30:00")],
    }


def test_the_edition_mini_is_the_first_impressions_of_small(tmp_path, monkeypatch):
    monkeypatch.setattr("turborec.sources.mind.MINI", 2)
    store = prepared(FIXTURE, tmp_path, Config(edition="mini"), min_item_events=0)
    assert [(user, time) for user, time, _ in shown(store)] == [
        *(("U1", "12 14:14:46"), ("U1", "15 08:01:02"), ("U2", "09 00:05:01"), ("U4", "15 10:00:00"))
    ]
    assert store.num_items == 8 and set(histories(store)) == {"U1", "U2", "U4"}


def test_parts_apart_or_together(tmp_path):
    found = histories(prepared(FIXTURE, tmp_path, Config(parts=("dev",))))
    assert found["U1"] == [("N1", None), ("N2", None), ("N1", None), ("N3", None), ("N8", "15 08:01:02")]
    assert set(found) == {"U1", "U4", "U5"}


def shown(store):
    found, log = [], store.impressions
    for number, user in enumerate(store.user_ids.raw(log.users)):
        span = slice(*log.offsets[number : number + 2])
        items = dict(zip(store.item_ids.raw(log.items[span] - 1), log.clicked[span].tolist(), strict=True))
        found.append((user, clock(int(log.times[number])), items))
    return found


def test_impressions_by_user_and_time(tmp_path):
    store = prepared(FIXTURE, tmp_path)
    assert shown(store) == [
        ("U1", "11 12:59:59", {"N6": 1, "N7": 0}),
        ("U1", "12 14:14:46", {"N4": 1, "N5": 0, "N6": 0}),
        ("U1", "15 08:01:02", {"N7": 0, "N8": 1}),
        ("U2", "09 00:05:01", {"N1": 1, "N4": 1, "N7": 0}),
        ("U2", "14 09:00:00", {"N2": 0, "N3": 1}),
        ("U3", "13 05:53:12", {"N4": 0, "N5": 1}),
        ("U3", "14 09:00:01", {"N6": 1}),
        ("U4", "10 23:00:00", {"N1": 0, "N2": 0}),
        ("U4", "15 10:00:00", {"N4": 1, "N8": 0}),
        ("U5", "15 13:30:00", {"N1": 0, "N3": 1}),
    ]
    assert store.card["impressions"] == {"number": 10, "items": 21, "of_what_is_not_kept": 0}
    first = {
        name: None if t == UNKNOWN_TIME else clock(int(t))
        for name, t in zip(store.item_ids.raw(range(8)), store.first_seen[1:], strict=True)
    }
    assert first == {"N1": None, "N2": None, "N3": None, "N4": "09 00:05:01", "N5": None, "N6": None, "N7": None, "N8": None}


def test_what_is_shown_and_never_clicked_is_among_the_items_where_all_that_is_described_is(tmp_path):
    config = Config(parts=("train",))
    few, all_of_them = (prepared(FIXTURE, tmp_path, config, min_item_events=least) for least in (1, 0))
    assert few.item_ids.raw(range(few.num_items)) == ["N1", "N2", "N3", "N4", "N5", "N6"]
    assert few.card["impressions"]["of_what_is_not_kept"] == 2
    assert all_of_them.item_ids.raw(range(all_of_them.num_items)) == ["N1", "N2", "N3", "N4", "N5", "N6", "N7"]
    assert ("U1", "11 12:59:59", {"N6": 1, "N7": 0}) in shown(all_of_them)
    assert clock(int(all_of_them.first_seen[7])) == "09 00:05:01"
    assert histories(few) == histories(all_of_them)


def test_one_day_is_for_validation_and_a_later_one_for_the_test(tmp_path):
    split = GlobalTime(validation_from="2019-11-14", test_from="2019-11-15")
    store = open_store(prepare(Config().parse(FIXTURE), {"kind": "mind"}, Prepare(min_item_events=0), split, tmp_path))
    assert [store.user_ids.raw(store.users_of(part)) for part in ("validation", "test")] == [["U2", "U3"], ["U1", "U4", "U5"]]


def test_kinds_and_texts(tmp_path):
    store = prepared(FIXTURE, tmp_path, kinds=("click",))
    assert histories(store)["U1"] == [("N6", "11 12:59:59"), ("N4", "12 14:14:46"), ("N8", "15 08:01:02")]
    table = pq.read_table(prepared(FIXTURE, tmp_path).folder / "items.parquet").to_pylist()
    assert table[0]["title"] == 'The "Reds" win' and table[1] == {
        "item": "N2",
        "title": "Says: 'no \" comment'",
        "abstract": None,
        "category": "news",
        "subcategory": "newsworld",
    }
    assert table[4]["abstract"] == '5" of rain'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("9\tU9\t11/31/2019 1:00:00 PM\tN1\tN2-1", "time is not on the calendar"),
        ("9\tU9\t2019-11-11 13:00:00\tN1\tN2-1", "time is not an ISO 8601 time"),
        ("9\tU9\t11/11/2019 13:00:00 PM\tN1\tN2-1", "time is not an ISO 8601 time"),
        ("9\tU9\t11/11/2019 1:00:00 PM\tN1\tN2", "item is empty"),
        ("9\tU9\t11/11/2019 1:00:00 PM\tN1", "4 columns instead of 5"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(tmp_path, line, said):
    raw = tmp_path / "raw" / "train"
    raw.mkdir(parents=True)
    for name in ("news.tsv", "behaviors.tsv"):
        text = (FIXTURE / "MINDsmall_train" / name).read_text()
        (raw / name).write_text(text + (line + "\n" if name == "behaviors.tsv" else ""))
    with pytest.raises(UserError, match=r"behaviors\.tsv:8: ") as error:
        prepared(tmp_path / "raw", tmp_path, Config(parts=("train",)), bad_rows=0)
    assert said in str(error.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"needs behaviors.tsv of train.*MINDdemo_train"):
        Config(edition="demo").parse(tmp_path)
