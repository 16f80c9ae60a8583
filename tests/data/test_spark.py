"""One SQL text on two engines: whatever the input, the stores, the bad rows and the refusals are the same."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.test_sources import CASES, ready
from data.test_prepare import COLUMNS, CROWD, Event, simulated, tables
from sources.test_table import config, partitioned
from turborec.data.engine import Engine, duckdb_in
from turborec.data.prepare import Prepare, prepare, store_key
from turborec.data.read import bad_records, event_checks, ingest
from turborec.data.schema import Columnar, Lookup, RawTable, RawTables, Text, TimeFormat
from turborec.data.spark import Spark
from turborec.data.split import GlobalTime, ItemHoldout, Labelled, LeaveOneOut, Ratio, Split, UserHoldout
from turborec.data.store import open_store
from turborec.errors import UserError


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    """A session for all tests, since one takes seconds to start."""
    sql = pytest.importorskip("pyspark.sql", reason="Spark: PySpark is not installed")
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        pytest.skip("Spark: there is no Java")
    settings = {"spark.ui.enabled": False, "spark.ui.showConsoleProgress": False, "spark.log.level": "FATAL"}
    session = sql.SparkSession.builder.config(map=settings).getOrCreate()
    yield session
    session.stop()


def card_of(folder: Path, raw: RawTables, config: Prepare, split: Split) -> dict[str, Any]:
    return open_store(prepare(raw, {"kind": "test"}, config, split, folder)).card


def assert_same(folder: Path, raw: RawTables, config: Prepare | None = None, split: Split | None = None) -> dict[str, Any]:
    """The card, with the SHA-256 of every file, which both engines must give."""
    cards = []
    for engine in ("duckdb", "spark"):
        chosen = (config or Prepare()).model_copy(update={"engine": engine})
        cards.append(card_of(folder / engine, raw, chosen, split or LeaveOneOut()))
    assert cards[0] == cards[1]
    assert not any(path.name.startswith(".") for path in folder.glob("*/stores/*"))
    return cards[0]


def events(count: int, seed: int = 0) -> list[Event]:
    """Events with ids that are hard to keep apart and to sort, and values and times of every kind."""
    draw = random.Random(seed)
    odd = ["007", "7", "é", "e\u0301", "\U0001f600", "\uffee", " a", "a ", "A", "a", '"', "'", "\\N", "%", "{x}", "\u0130"]
    ids = odd + [str(n) for n in range(30)]
    return [
        Event(
            draw.choice(ids),
            draw.choice(ids),
            draw.choice([None, 0, 5, 5, 6, 7, draw.randrange(10**9)]) if draw.random() < 0.2 else draw.randrange(100),
            draw.randrange(-5, 20),
            draw.choice(["", 0, -1, 3.5, "1e-3", ".5", "5."]),  # type: ignore[arg-type]
            draw.choice(["buy", "it's", "a\\b", "", "view", "${x}"]),
            draw.choice(["train", "train", "train", "valid", "test"]),
        )
        for _ in range(count)
    ]


SPLITS: list[tuple[Split, tuple[str, ...], Prepare]] = [
    (LeaveOneOut(), COLUMNS[:3], Prepare()),
    (Ratio(), ("user", "item", "time", "order"), Prepare(duplicates="last", min_user_events=2)),
    (GlobalTime(), ("user", "item", "time", "value"), Prepare(min_value=0.1, duplicates="drop_exact")),
    (
        Labelled(),
        COLUMNS,
        Prepare(kinds=("buy", "it's", "a\\b", "${x}"), duplicates="first", min_user_events=3, min_item_events=3),
    ),
    (UserHoldout(), ("user", "item", "value"), Prepare(duplicates="keep", min_item_events=20, values=True)),
    (ItemHoldout(), ("user", "item", "time", "value", "label"), Prepare(duplicates="drop_exact", values=True)),
]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("split", "columns", "config"), SPLITS, ids=[split.kind for split, *_ in SPLITS])
def test_odd_events_give_the_same_store(
    spark: Any, tmp_path: Path, split: Split, columns: Sequence[str], config: Prepare
) -> None:
    odd = events(3000)
    if split.kind == "global_time":
        odd = [event for event in odd if event.time is not None]
    raw = tables(tmp_path / "events.tsv", odd, columns)
    with (tmp_path / "events.tsv").open("ab") as file:
        file.write(
            b"bad\n\nu\t\t1\t1\t1\t\ttrain\nu\t\xff\t1\t1\t1\t\ttrain\nu\ti\t1e3\tx\tnan\t\tTrain\nu\x00\ti\t\t\t\t\ttest\n"
        )
    card = assert_same(tmp_path, raw, config.model_copy(update={"bad_rows": 0.5}), split)
    assert sum(card["rows"]["events"]["rejected"].values()) >= 3
    assert "quarantine.tsv" in card["files"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}-{case.name}")
def test_every_source_gives_the_same_store(spark: Any, tmp_path: Path, case: Path) -> None:
    _, raw = ready(case, tmp_path / "raw")
    assert_same(tmp_path, raw, Prepare(min_user_events=2, min_item_events=2))


NAMES = ("part:0.parquet", "_part-1.parquet", ".part-2.parquet", "part-3.parquet")


@pytest.mark.slow
def test_files_of_every_kind_in_one_folder_with_an_odd_name(spark: Any, tmp_path: Path) -> None:
    (folder := tmp_path / "a [b] {c} * é'").mkdir()
    paths = []
    for number in range(4):  # whole numbers and text are read by Spark itself, floats and Arrow files are not
        users, items = [f"u{n % 9}" for n in range(90)], [n * (number + 1) % 31 for n in range(90)]
        user = pa.array([*users, None, ""])
        item = pa.array([*items, 1, 2], pa.float64() if number == 2 else pa.int16())
        table = pa.table({"Who": user, "what": item, "when": [10**12 + n * 1000 for n in range(92)]})
        paths.append(folder / NAMES[number])
        if number == 3:
            with pa.ipc.new_file(paths[-1], table.schema) as file:
                file.write_table(table)
        else:
            pq.write_table(table, paths[-1], row_group_size=17)
    select = {"user": "Who", "item": "what", "time": "when"}
    raw = RawTables(RawTable(tuple(paths), Columnar(), select, where="what <> '5'"), time="milliseconds")
    card = assert_same(folder, raw, Prepare(bad_rows=0.1))
    assert card["rows"]["events"]["rejected"] == {"user is empty": 8}
    lines = [line.split("\t")[:2] for line in next(folder.glob("spark/stores/*/quarantine.tsv")).read_text().splitlines()]
    assert lines[1:] == [[name, str(line)] for name in NAMES for line in (91, 92)]


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["events", "a [b] {c} * é'% %41"])
def test_a_folder_of_parts_whose_folders_tell_columns(spark: Any, tmp_path: Path, folder: str) -> None:
    raw = config(**partitioned(tmp_path / folder)).parse(tmp_path)
    card = assert_same(tmp_path, raw, Prepare(kinds=("buy", "view/page"), bad_rows=0))
    assert card["counts"]["events"] == 200
    twice = RawTables(replace(raw.events, paths=raw.events.paths[1:3] * 2, constants={"time": ("1", "2", "3", "4")}))
    assert assert_same(tmp_path, twice)["rows"]["events"]["rows"] == 160


@pytest.mark.slow
def test_a_file_that_lacks_a_column_is_named(spark: Any, tmp_path: Path) -> None:
    given = partitioned(tmp_path / "events")
    path = tmp_path / "events" / "day=2024-01-02" / "type=buy" / "part-00000.snappy.parquet"
    pq.write_table(pa.table({"who": ["u"], "place": [1]}), path)
    with pytest.raises(UserError, match=r"day=2024-01-02/type=buy/part-00000.snappy.parquet has no column 'what'"):
        prepare(config(**given).parse(tmp_path), {}, Prepare(engine="spark"), LeaveOneOut(), tmp_path / "home")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thousands_of_files_are_one_relation(spark: Any, tmp_path: Path) -> None:
    for number in range(2000):
        (folder := tmp_path / "events" / f"day={number % 100}").mkdir(parents=True, exist_ok=True)
        columns = {"who": [f"u{n % 97}" for n in range(50)], "what": [n * (number + 1) % 301 for n in range(50)]}
        pq.write_table(pa.table(columns), folder / f"part-{number}.parquet")
    raw = config(events="events", user="who", item="what", time="day").parse(tmp_path)
    assert assert_same(tmp_path, raw)["counts"]["events"] == 100_000


@pytest.mark.slow
def test_the_first_of_several_values_of_a_key_counts_even_where_it_is_empty(spark: Any, tmp_path: Path) -> None:
    (tmp_path / "events.tsv").write_text("".join(f"u{n % 4}\t{n % 5}\t{n}\n" for n in range(40)))
    (tmp_path / "told.tsv").write_text("0\t\n0\tlater\n1\tone\n1\ttwo\n2\t\n3\t${x}\n4\tfour\n")
    (tmp_path / "items.tsv").write_text("".join(f"{n}\n" for n in range(5)))
    events = RawTable((tmp_path / "events.tsv",), Text("\t", ("u", "i", "t")), {"user": "u", "item": "i", "time": "t"})
    told = RawTable((tmp_path / "told.tsv",), Text("\t", ("key", "value")), {"key": "key", "value": "value"})
    items = RawTable((tmp_path / "items.tsv",), Text("\t", ("i",)), {"item": "i"}, lookups={"text": Lookup("i", told)})
    assert_same(tmp_path, RawTables(events, items))
    (store,) = (tmp_path / "duckdb" / "stores").iterdir()
    assert dict(zip(*pq.read_table(store / "items.parquet").to_pydict().values(), strict=True))["0"] is None


@pytest.mark.slow
def test_a_name_that_ends_in_a_backslash_is_refused(spark: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"u": ["a"], "i\\": ["b"]}), tmp_path / "events.parquet")
    raw = RawTables(RawTable((tmp_path / "events.parquet",), Columnar(), {"user": "u", "item": "i\\"}))
    with pytest.raises(UserError, match="ends in a backslash"):
        prepare(raw, {"kind": "test"}, Prepare(engine="spark"), LeaveOneOut(), tmp_path / "home")


@pytest.mark.slow
def test_items_with_odd_attributes_and_derived_columns(spark: Any, tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text(
        "User,It em,when\n" + "".join(f'"u{n % 4}","{n % 9}",2020-01-0{n % 9 + 1}T03:04Z\n' for n in range(40)),
        encoding="utf-8",
    )
    header = ["id", "Größe (cm)", 'a"b', "x.y", "c`d", "e\\f", "genres"]
    lines = ['"1","ä, b\n2",x,"",NULL,\\N,"it\'s"', "2,,,,,,", '"1",later,,,,,', "99,1,2,3,4,5,6"]
    text = ",".join(f'"{name.replace(chr(34), 2 * chr(34))}"' for name in header) + "\n" + "\n".join(lines) + "\n"
    (tmp_path / "items.csv.gz").write_bytes(gzip.compress(text.encode()))
    layout = Text(",", header=True, quote='"')
    kept = {name if name != "id" else "item": name for name in header}
    derive = {"Year": "nullif(regexp_extract(genres, '(it).*(s)$', 2), '')", "b": "concat_ws('|', genres, '''')"}
    items = RawTable((tmp_path / "items.csv.gz",), layout, kept, where="id <> '99'", derive=derive)
    select = {"user": "User", "item": "It em", "time": "when"}
    raw = RawTables(RawTable((tmp_path / "events.csv",), layout, select), items, "iso")
    card = assert_same(tmp_path, raw)
    assert card["rows"]["items"]["left_out"] == 1
    first, second = pq.read_table(next(tmp_path.glob("spark/stores/*/items.parquet"))).to_pylist()[1:3]
    assert (first["Größe (cm)"], first["e\\f"], first["x.y"], first["Year"]) == ("ä, b\n2", "\\N", None, "s")
    assert (second["item"], second["b"]) == ("2", "|'")


def staged(con: Engine, table: RawTable, time: TimeFormat) -> list[Any]:
    """The sound rows, the bad ones and the counts."""
    intake = ingest(con, "staged", table, event_checks(time), 1.0, "events")
    return [
        intake,
        con.rows("SELECT * FROM staged WHERE _reason IS NULL ORDER BY position"),
        list(bad_records(con, "staged", table)),
    ]


def drawn_texts(draw: random.Random) -> list[str]:
    """A user, an item, an ISO time, an order and a value, each often right and often nearly so."""

    def digit(low: int, high: int) -> str:
        return f"{draw.randrange(low, high):02}"

    day = f"{draw.choice(['0000', '1582', '1969', *['1970', '2020', '2100', '9999'] * 3])}-{digit(1, 14)}-{digit(1, 32)}"
    zone = draw.choice(["", "Z", f"+{digit(0, 20)}:{digit(0, 62)}", f"-{digit(0, 20)}{digit(0, 62)}", f"+{digit(0, 19)}", "z"])
    clock = f"{draw.choice('T T')}{digit(0, 26)}:{digit(0, 61)}"
    seconds = draw.choice(["", f":{digit(0, 61)}", f":{digit(0, 61)}.{draw.randrange(10 ** draw.randrange(1, 11))}"])
    time = day + draw.choice(["", clock + seconds + zone, clock + seconds + zone])
    whole = draw.choice(["", "-", "+", "0", "-0"]) + str(draw.randrange(10 ** draw.randrange(1, 21)))
    value = draw.choice(["", "-", "+", " "]) + draw.choice(
        [str(draw.random() * 10 ** draw.randrange(-9, 9)), f"{whole}.", f".{draw.randrange(977)}", f"{whole}e{whole[:4]}"]
    )
    text = "".join(draw.choice("aé \u0301\U0001f600\\\"'\u0130\u2028") for _ in range(draw.randrange(6)))
    return [
        text,
        f"i{text}" * draw.randrange(1, 90),
        time,
        draw.choice([whole, str(draw.randrange(99)), "7", "8"]),
        draw.choice([value, value, "", "nan"]),
    ]


@pytest.mark.slow
def test_every_value_is_taken_or_refused_alike(spark: Any, tmp_path: Path) -> None:
    draw = random.Random(7)
    rows = ["\t".join(drawn_texts(draw)) for _ in range(20_000)]
    (tmp_path / "events.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8", newline="\n")
    names = ("user", "item", "time", "order", "value")
    table = RawTable((tmp_path / "events.tsv",), Text("\t", names), {name: name for name in names})
    (tmp_path / "work").mkdir()
    with closing(duckdb_in(tmp_path, 500)) as one, closing(Spark(tmp_path / "work", 500)) as other:
        found, expected = staged(other, table, "iso"), staged(one, table, "iso")
    assert found == expected
    assert len(expected[0].rejected) == 8
    assert 4000 < len(expected[1]) < 16_000


@pytest.mark.slow
def test_ranks_are_those_of_one_sort_however_many_tasks_share_it(spark: Any, tmp_path: Path) -> None:
    draw = random.Random(3)
    ids = {"".join(chr(draw.choice([97, 98, 233, 0x3042, 0x1F600, 0xFFEE])) for _ in range(8)) for _ in range(5000)}
    with closing(Spark(tmp_path, 500)) as con:
        con._spark.conf.set("spark.sql.adaptive.enabled", "false")
        con._spark.conf.set("spark.sql.shuffle.partitions", "50")
        con.register("raw", pa.table({"id": list(ids)}))
        con.ranks("ranked", "SELECT DISTINCT id FROM raw", "id", "rank", 1)
        assert len(list(con._folders["ranked"].glob("part-*"))) > 1
        found = con.rows("SELECT id, rank FROM ranked ORDER BY rank")
        assert found == [(text, rank) for rank, text in enumerate(sorted(ids, key=str.encode), start=1)]
        streamed = [row["id"] for batch in con.batches("SELECT id FROM raw ORDER BY id DESC") for row in batch.to_pylist()]
        assert streamed == sorted(ids, key=str.encode, reverse=True)
    assert list(tmp_path.iterdir()) == []


REFUSED: list[tuple[list[Event], tuple[str, ...], Prepare]] = [
    ([*CROWD, Event("u", "", 1)], ("user", "item", "time"), Prepare()),
    ([event._replace(kind=event.item) for event in CROWD], ("user", "item", "kind"), Prepare(kinds=("buy",))),
    (CROWD, ("user", "item", "time"), Prepare(min_user_events=4)),
    ([event._replace(time=10**11) for event in CROWD], ("user", "item", "time"), Prepare()),
]


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns", "config"), REFUSED, ids=["bad rows", "kinds", "core", "year 5138"])
def test_refusals_are_the_same(spark: Any, tmp_path: Path, rows: list[Event], columns: Sequence[str], config: Prepare) -> None:
    raw = tables(tmp_path / "events.tsv", rows, columns)
    said = []
    for engine in ("duckdb", "spark"):
        with pytest.raises(UserError) as caught:
            card_of(tmp_path / engine, raw, config.model_copy(update={"engine": engine}), LeaveOneOut())
        said.append(str(caught.value))
        assert [path.suffix for path in (tmp_path / engine / "stores").iterdir()] == [".lock"]
    assert said[0] == said[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("tme = '1'", r"does not run: \[UNRESOLVED_COLUMN.*tme"),
        ("time = ", r"does not run: \[PARSE_SYNTAX_ERROR"),
        ("CAST(item AS BIGINT) > 0", r"does not run: \[CAST_INVALID_INPUT.*'x'"),
    ],
)
def test_sql_that_does_not_run_is_the_users_to_mend(spark: Any, tmp_path: Path, where: str, message: str) -> None:
    table = tables(tmp_path / "events.tsv", CROWD).events
    with closing(Spark(tmp_path, 500)) as con, pytest.raises(UserError, match=message):
        staged(con, RawTable(table.paths, table.layout, table.select, where), "seconds")


@pytest.mark.slow
def test_a_broken_parquet_file_is_the_users_to_mend(spark: Any, tmp_path: Path) -> None:
    path, select = tmp_path / "e.parquet", {"user": "user", "item": "item"}
    item = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"user": ["u"], "item": item}), path)
    (tmp_path / "work").mkdir()
    with closing(Spark(tmp_path / "work", 500)) as con:
        with pytest.raises(UserError, match=r"cannot be read.*\\xFF"):
            staged(con, RawTable((path,), Columnar(), select), "seconds")
        pq.write_table(pa.table({"user": [f"u{n}" for n in range(10**5)], "item": range(10**5)}), path)
        path.write_bytes(path.read_bytes()[:1000] + bytes(10_000) + path.read_bytes()[11_000:])
        with pytest.raises(UserError, match=r"cannot be read.*e\.parquet"):
            staged(con, RawTable((path,), Columnar(), select), "seconds")


def test_the_engine_is_no_part_of_what_a_store_is_known_by(tmp_path: Path) -> None:
    raw = tables(tmp_path / "events.tsv", CROWD)
    keys = {store_key(raw, [{"sha256": "a"}], Prepare(engine=engine), LeaveOneOut()) for engine in ("duckdb", "spark")}
    assert len(keys) == 1
    assert Prepare(engine="spark", memory_mb=500).rules() == Prepare().rules()


def test_without_pyspark_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    raw = tables(tmp_path / "events.tsv", CROWD)
    with pytest.raises(UserError, match=r"needs PySpark: pip install 'turborec\[spark\]'"):
        prepare(raw, {}, Prepare(engine="spark"), LeaveOneOut(), tmp_path)
    assert [path.suffix for path in (tmp_path / "stores").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("JAVA_HOME", "the folder that JAVA_HOME names, .*, has no bin/java: install Java 17 or 21"),
        ("PATH", "no `java` is found"),
    ],
)
def test_without_java_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, message: str) -> None:
    pytest.importorskip("pyspark.sql", reason="Spark: PySpark is not installed")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.setattr("turborec.data.spark._running", lambda: None)
    with pytest.raises(UserError, match=message):
        Spark(tmp_path, 1000)


def test_a_folder_that_not_all_machines_share_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [0, 1, 2]}), tmp_path / "part-00000-of-the-machine-that-is-this-one.parquet")
    context = SimpleNamespace(master="spark://elsewhere:7077", defaultParallelism=2)
    session = SimpleNamespace(sparkContext=context, range=lambda *_: None)
    engine: Any = SimpleNamespace(_spark=session, _work=tmp_path, _write=lambda _: tmp_path)
    with pytest.raises(UserError, match=r"Not every machine of spark://elsewhere:7077 shares .*: 3 of 8 rows"):
        Spark._require_shared(engine)


ALONE = """
    import json, sys
    from pathlib import Path
    from turborec.data.prepare import Prepare, prepare
    from turborec.data.schema import Columnar, RawTable, RawTables
    from turborec.data.split import LeaveOneOut
    path, home, engine, select, shard_mb = sys.argv[1:]
    raw = RawTables(RawTable((Path(path),), Columnar(), json.loads(select)))
    rules = {"duplicates": "drop_exact", "min_user_events": 5, "min_item_events": 5}
    config = Prepare(**rules, engine=engine, shard_mb=json.loads(shard_mb))
    for attempt in ("first", "second")[: 1 if "large" in home else 2]:
        print(prepare(raw, {}, config, LeaveOneOut(), Path(home) / attempt))
"""


def alone(path: Path, home: Path, engine: str, select: dict[str, str], shard_mb: int | None = None) -> dict[str, Any]:
    """The card of a store made in a process of its own, which starts Spark and ends it."""
    pytest.importorskip("pyspark.sql", reason="Spark: PySpark is not installed")
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(ALONE),
        str(path),
        str(home),
        engine,
        json.dumps(select),
        json.dumps(shard_mb),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cards = [open_store(Path(line)).card for line in done.stdout.splitlines()]
    assert all(card == cards[0] for card in cards)
    return cards[0]


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(1800)
def test_movielens_1m_gives_the_same_store(data_folder: Path, tmp_path: Path) -> None:
    path, select = data_folder / "ml-1m" / "interactions.parquet", {"user": "user_id", "item": "item_id", "time": "timestamp"}
    cards = [alone(path, tmp_path / engine, engine, select) for engine in ("duckdb", "spark")]
    assert cards[0] == cards[1]
    assert cards[0]["counts"]["events"] == 999_611


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("millions", [5, 20])
def test_millions_of_events_give_the_same_store(tmp_path: Path, millions: int) -> None:
    simulated(tmp_path / "events.parquet", millions * 10**6)
    select = {"user": "user", "item": "item", "time": "time"}
    cards = [alone(tmp_path / "events.parquet", tmp_path / f"large {engine}", engine, select) for engine in ("duckdb", "spark")]
    assert cards[0] == cards[1]
