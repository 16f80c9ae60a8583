import logging

import pytest

from turborec import recipes, stores
from turborec.stores import Places


def prepared(tmp_path, rows, caplog, split="{kind: leave_one_out}", **source):
    """What is logged about the store of a table with these rows."""
    (tmp_path / "events.csv").write_text("user,item,time\n" + "\n".join(rows) + "\n")
    said = ", ".join(f"{name}: {value}" for name, value in ({"time": "time"} | source).items())
    source = f"{{kind: table, events: {tmp_path / 'events.csv'}, user: user, item: item, {said}}}"
    overrides = [f"data.source={source}", f"data.split={split}", "data.prepare.min_user_events=1"]
    with caplog.at_level(logging.INFO, logger="turborec"):
        stores.of_recipe(recipes.load("ml-100k/sasrec", overrides), Places(tmp_path / "home"))
    return caplog.text


ROWS = [f"u{n % 5},i{n % 7},{1_700_000_000 + n}" for n in range(50)]


def test_events_without_a_time_are_told_of(tmp_path, caplog):
    rows = [row if n not in (3, 4, 8) else row.rsplit(",", 1)[0] + "," for n, row in enumerate(ROWS)]
    told = prepared(tmp_path, rows, caplog)
    assert "3 of 50 events have no time" in told and "2 users have both" in told


def test_a_table_without_times_is_told_to_be_in_the_order_of_its_files(tmp_path, caplog):
    assert "No event has a time: every history is in the order of the files" in prepared(tmp_path, ROWS, caplog, time="null")


@pytest.mark.parametrize("source", [{}, {"time": "null", "order": "time"}])
def test_times_and_stated_orders_need_no_word(tmp_path, caplog, source):
    assert "time" not in prepared(tmp_path, ROWS, caplog, **source)


def test_users_whose_events_all_come_after_the_cut_are_told_of(tmp_path, caplog):
    late = [*ROWS, *(f"late{n},i1,{1_700_000_100 + n}" for n in range(3))]
    told = prepared(tmp_path, late, caplog, split="{kind: global_time}")
    assert "users have events in the test part and none before it" in told


def test_a_store_is_found_again_without_its_raw_files(tmp_path, caplog):
    prepared(tmp_path, ROWS, caplog)
    source = f"{{kind: table, events: {tmp_path / 'events.csv'}, user: user, item: item, time: time}}"
    rules = [f"data.source={source}", "data.split={kind: leave_one_out}", "data.prepare.min_user_events=1"]
    (store,) = (tmp_path / "home" / "stores").iterdir()
    (tmp_path / "events.csv").unlink()
    assert stores.prepared_before(recipes.load("ml-100k/sasrec", rules), tmp_path / "home") == store
    other = recipes.load("ml-100k/sasrec", [*rules, "data.prepare.min_item_events=2"])
    assert stores.prepared_before(other, tmp_path / "home") is None
