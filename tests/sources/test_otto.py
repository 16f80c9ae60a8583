from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from turborec.data.prepare import Prepare, prepare
from turborec.data.split import LeaveOneOut
from turborec.data.store import Store, open_store
from turborec.errors import UserError
from turborec.sources.otto import Config

FIXTURE = Path(__file__).parents[1] / "fixtures" / "otto" / "train"


def prepared(config: Config, folder: Path, home: Path, **settings: object) -> Store:
    return open_store(prepare(config.parse(folder), {"kind": "otto"}, Prepare(**settings), LeaveOneOut(), home))


def test_each_event_of_a_session_is_a_row_with_its_kind(tmp_path: Path) -> None:
    assert prepared(Config(), FIXTURE, tmp_path).card["counts"]["events"] == 3 + 4 + 5 + 6 + 7
    clicks = prepared(Config(), FIXTURE, tmp_path, kinds=("clicks",))
    assert clicks.card["counts"]["dropped"]["other_kinds"] == 25 - clicks.card["counts"]["events"] == 11
    assert clicks.card["time_unit"] == "milliseconds"


def test_a_line_that_is_cut_short_is_one_bad_row(tmp_path: Path) -> None:
    lines = (FIXTURE / "train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join([*lines[:2], lines[2][:50], *lines[3:]]))
    with pytest.raises(UserError, match=r"1 of 21 rows are bad.*\n  train\.jsonl:3: not JSON: "):
        prepared(Config(), tmp_path, tmp_path, bad_rows=0)


def test_missing_file_says_where_to_fetch_it_and_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBOREC_DATA", str(tmp_path / "data"))
    with pytest.raises(UserError) as caught:
        Config(events="otto/train.jsonl").download(tmp_path / "raw")
    for part in ("kaggle.com/datasets/otto", str(tmp_path / "raw/otto/train.jsonl"), str(tmp_path / "data/otto/train.jsonl")):
        assert part in str(caught.value)


@pytest.mark.data
def test_the_published_sample_prepares_to_its_counts(data_folder: Path, tmp_path: Path) -> None:
    store = prepared(Config(), data_folder / "otto-sample" / "raw", tmp_path)
    assert (store.num_users, store.num_items, len(store.histories.items)) == (20, 510, 862)
    rows = pq.read_table(data_folder / "otto-sample" / "events.parquet").to_pylist()
    for user, session in enumerate(store.user_ids.raw(range(20))):
        span = slice(*store.histories.offsets[user : user + 2].tolist())
        got = zip(store.item_ids.raw(store.histories.items[span] - 1), store.histories.times[span].tolist(), strict=True)
        assert Counter(got) == Counter((str(row["aid"]), row["ts"]) for row in rows if str(row["session"]) == session)
