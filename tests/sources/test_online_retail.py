"""The bundled Online Retail files hold what their notice says."""

from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from turborec.data.schema import RawTable
from turborec.sources.online_retail import FILES, Config


def read(table: RawTable | None):
    assert table
    return pq.read_table(table.paths[0])


def test_files_are_small_and_carry_their_notice() -> None:
    assert sum(path.stat().st_size for path in FILES.glob("online_retail*")) < 3 * 2**20
    notice = (FILES / "online_retail_NOTICE.txt").read_text()
    assert "Daqing Chen" in notice and "CC0" in notice and "396,337" in notice


def test_counts_are_those_of_the_notice() -> None:
    events = read(Config().parse(Path("anywhere")).events)
    counts = [len(pc.unique(events[name])) for name in ("customer", "product")]
    assert (events.num_rows, *counts) == (396_337, 4_334, 3_659)


def test_only_products_are_left_and_each_has_a_name() -> None:
    tables = Config().parse(Path("anywhere"))
    items = read(tables.items)
    assert pc.all(pc.match_substring_regex(items["product"], "^[0-9]{5}[A-Za-z]*$")).as_py()
    assert pc.all(pc.greater(pc.utf8_length(items["name"]), 0)).as_py()
    assert set(items["product"].to_pylist()) == set(read(tables.events)["product"].to_pylist())
    names = dict(zip(items["product"].to_pylist(), items["name"].to_pylist(), strict=True))
    assert names["85123A"] == "WHITE HANGING HEART T-LIGHT HOLDER"


def test_times_are_minutes_of_the_year_and_agree_with_the_order() -> None:
    events = read(Config().parse(Path("anywhere")).events)
    times, order = (events[name].to_numpy() for name in ("time", "order"))
    first = order == 0
    assert (times % 60 == 0).all() and (times.min(), times.max()) == (1291191960, 1323435000)
    assert (order[1:][~first[1:]] == order[:-1][~first[1:]] + 1).all()
    assert (times[1:][~first[1:]] >= times[:-1][~first[1:]]).all()
