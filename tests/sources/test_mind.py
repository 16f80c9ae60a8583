"""MIND's files as they are: histories once, clicks by time, texts without quoting, bad rows named."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from turborec.data.prepare import Prepare, prepare
from turborec.data.schema import UNKNOWN_TIME
from turborec.data.split import LeaveOneOut
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


def test_parts_apart_or_together(tmp_path):
    found = histories(prepared(FIXTURE, tmp_path, Config(parts=("dev",))))
    assert found["U1"] == [("N1", None), ("N2", None), ("N1", None), ("N3", None), ("N8", "15 08:01:02")]
    assert set(found) == {"U1", "U4", "U5"}


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
