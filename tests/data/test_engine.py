from contextlib import closing
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from turborec.data import clean
from turborec.data.clean import ITEM_FACTOR, PRIME, USER_FACTOR
from turborec.data.engine import DuckDB, duckdb_in
from turborec.data.read import literal, quoted
from turborec.errors import UserError


def test_the_zone_of_the_machine_does_not_matter() -> None:
    con = duckdb.connect()
    con.execute("SET TimeZone = 'America/New_York'")
    with closing(DuckDB(con)) as engine:
        assert engine.rows("SELECT instant_us('1970-01-02'), instant_us('1970-01-01T01:00+01')") == [(86_400 * 10**6, 0)]


@pytest.mark.parametrize("text", ["", "it's", "''", "a\\b", "\\", "é\t\n", '"'])
def test_texts_and_names_survive_sql(tmp_path: Path, text: str) -> None:
    with closing(duckdb_in(tmp_path, 250)) as engine:
        assert engine.rows(f"SELECT {literal(text)}") == [(text,)]
        assert engine.rows(f"SELECT {quoted('n' + text)} FROM (SELECT 5 AS {quoted('n' + text)})") == [(5,)]


def test_a_table_may_be_made_anew_of_itself(tmp_path: Path) -> None:
    with closing(duckdb_in(tmp_path, 250)) as engine:
        engine.table("t", "SELECT 1 AS x")
        engine.table("t", "SELECT x + 1 AS x FROM t")
        assert engine.rows("SELECT x FROM t") == [(2,)]
        engine.ranks("r", "SELECT 9 - range AS id FROM range(3)", "id", "rank", 5)
        assert engine.rows("SELECT id, rank FROM r ORDER BY id") == [(7, 5), (8, 6), (9, 7)]


def test_ties_of_the_greatest_ids_stay_within_64_bits(tmp_path: Path) -> None:
    top = 2**31 - 1
    pairs = [(top, top), (top, top - 1), (top, 1), (top, 46_341)]
    with closing(duckdb_in(tmp_path, 250)) as engine:
        u, i = (np.array([pair[place] for pair in pairs], np.int32) for place in (0, 1))
        nothing = pa.array([0] * len(pairs), pa.int64())
        engine.register("core", pa.table({"u": u, "i": i, "time": nothing, "label": nothing, "moment": nothing}))
        (batch,) = engine.batches(clean.events_query(values=False))
    expected = sorted(pairs, key=lambda pair: pow(pair[0] * USER_FACTOR + pair[1] * ITEM_FACTOR, 5, PRIME))
    assert batch.column("item").to_pylist() == [item for _, item in expected]
    assert top * USER_FACTOR + top * ITEM_FACTOR < 2**63 and (PRIME - 1) ** 2 < 2**63


@pytest.mark.parametrize("name", ["wh?t", "back\\slash"])
def test_a_folder_that_duckdb_cannot_write_to_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="question mark or a backslash"):
        duckdb_in(tmp_path / name, 500)
