import bz2
import csv
import gzip
import io
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intake import staged, take
from turborec.data import chunks, rows
from turborec.data.read import event_checks, item_checks, time_format, write_quarantine
from turborec.data.schema import Columnar, RawTable, Text, TimeFormat
from turborec.errors import UserError

TSV = Text("\t", ("user", "item", "time"))
CSV = Text(",", header=True, quote='"')


def test_rows_keep_their_text_and_numbers(tmp_path: Path) -> None:
    taken = take(tmp_path / "e.tsv", b"u1\ti1\t5\nu2\ti2\t6\n")
    assert taken.rows == [("u1", "i1", 5), ("u2", "i2", 6)]
    assert (taken.intake.rows, taken.intake.blank, taken.intake.rejected) == (2, 0, {})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("u\ti", "2 columns instead of 3"),
        ("u\ti\t1\tx", "4 columns instead of 3"),
        (" ", "1 columns instead of 3"),
        ("u\ti\t102.7", "time is not a whole number"),
        ("u\ti\t1e3", "time is not a whole number"),
        ("u\ti\t 1", "time is not a whole number"),
        ("u\ti\t+1", "time is not a whole number"),
        ("u\ti\tnan", "time is not a whole number"),
        ("u\ti\tyesterday", "time is not a whole number"),
        ("u\ti\t9223372036854775808", "time does not fit in 64 bits"),
        ("u\ti\t-1", "time is before 1970"),
        ("u\ti\t-9223372036854775808", "time is before 1970"),
        ("\ti\t1", "user is empty"),
        ("u\t\t1", "item is empty"),
        ("u\x00\ti\t1", "user holds a NUL byte"),
        ("u\ti\x00\t1", "item holds a NUL byte"),
    ],
)
def test_bad_row_is_set_aside_with_its_line_and_text(tmp_path: Path, row: str, reason: str) -> None:
    taken = take(tmp_path / "e.tsv", f"a\tb\t1\n\n{row}\nc\td\t2\n".encode())
    assert taken.rows == [("a", "b", 1), ("c", "d", 2)]
    assert taken.bad == [(3, reason)]
    assert taken.texts == [row.replace("\t", "\\t")]
    assert (taken.intake.rows, taken.intake.blank, taken.intake.rejected) == (3, 1, {reason: 1})


def test_bytes_of_another_encoding_are_bad_rows(tmp_path: Path) -> None:
    taken = take(tmp_path / "e.tsv", b"a\tb\t1\nu\t\xe9\t1\nc\td\t2\n")
    assert taken.rows == [("a", "b", 1), ("c", "d", 2)]
    assert taken.bad == [(2, "not valid UTF-8")]


def test_latin_1_is_read_where_it_is_stated(tmp_path: Path) -> None:
    layout = Text("\t", ("user", "item", "time"), encoding="latin-1")
    assert take(tmp_path / "e.tsv", b"u\tcaf\xe9\t1\n", layout).rows == [("u", "café", 1)]


@pytest.mark.parametrize(
    "ids", [("007", "7"), ("é", "e\u0301"), ("a b", " a b "), ('"a"', "'a'"), ("\\N", "NULL"), ("#a", "a")]
)
def test_ids_that_look_alike_stay_apart(tmp_path: Path, ids: tuple[str, str]) -> None:
    content = "".join(f"{name}\t{name}\t1\n" for name in ids).encode()
    assert take(tmp_path / "e.tsv", content).rows == [(name, name, 1) for name in ids]


@pytest.mark.parametrize("quote", ["", '"'])
def test_ids_may_be_a_megabyte_long(tmp_path: Path, quote: str) -> None:
    long = "x" * 2**20
    content = f"user,item,time\n{quote}{long}{quote},i,1\nu,{long},2\n".encode()
    assert take(tmp_path / "e.csv", content, Text(",", header=True, quote=quote)).rows == [(long, "i", 1), ("u", long, 2)]


def test_missing_time_is_unknown(tmp_path: Path) -> None:
    assert take(tmp_path / "e.tsv", b"u\ti\t\nu\tj\t0\n").rows == [("u", "i", None), ("u", "j", 0)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("layout", [TSV, Text("\t", ("user", "item", "time"), quote='"')], ids=["plain", "quoted"])
def test_line_ends_are_no_part_of_a_value(tmp_path: Path, end: str, last: bool, layout: Text) -> None:
    content = end.join(["u\ti\t1", "", "v\tj\t2"]) + end * last
    taken = take(tmp_path / "e.tsv", content.encode(), layout)
    assert taken.rows == [("u", "i", 1), ("v", "j", 2)]
    assert taken.intake.blank == 1


def test_mixed_line_ends_are_read(tmp_path: Path) -> None:
    assert take(tmp_path / "e.tsv", b"u\ti\t1\r\nv\tj\t2\nw\tk\t3\r\n").rows == [("u", "i", 1), ("v", "j", 2), ("w", "k", 3)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress], ids=["plain", "gzip", "bzip2"])
def test_byte_order_mark_and_compression_are_seen_through(tmp_path: Path, pack: Any) -> None:
    assert take(tmp_path / "e.tsv", pack(b"\xef\xbb\xbfu\ti\t1\n")).rows == [("u", "i", 1)]


def test_delimiter_may_be_longer_than_a_character(tmp_path: Path) -> None:
    layout = Text("::", ("user", "item", "time"))
    taken = take(tmp_path / "e.dat", b"1::a:b::5\n1::c\n2:::d::6\n", layout)
    assert taken.rows == [("1", "a:b", 5), ("2", ":d", 6)]
    assert taken.bad == [(2, "2 columns instead of 3")]


def test_quoted_values_hold_delimiters_quotes_and_lines(tmp_path: Path) -> None:
    content = b'user,item,time\n"a, ""b""\nc",i,1\n\nu,j"k,2\n'
    taken = take(tmp_path / "e.csv", content, CSV)
    assert taken.rows == [('a, "b"\nc', "i", 1), ("u", 'j"k', 2)]
    assert taken.intake.blank == 1


def test_bad_rows_after_quoted_lines_keep_their_place(tmp_path: Path) -> None:
    content = b'user,item,time\n"a\nb",i,1\nu,i,x\n"u"v,i,1\nu,i\nu,j,2\n'
    taken = take(tmp_path / "e.csv", content, CSV)
    assert taken.rows == [("a\nb", "i", 1), ("u", "j", 2)]
    assert [line for line, _ in taken.bad] == [4, 5, 6]


def test_every_line_behind_an_unclosed_quote_counts_as_bad(tmp_path: Path) -> None:
    content = b'user,item,time\nu,i,1\n"v,j,2\nw,k,3\nx,l,4\n'
    taken = take(tmp_path / "e.csv", content, CSV)
    assert taken.rows == [("u", "i", 1)]
    assert [line for line, _ in taken.bad] == [3, 4, 5]
    assert taken.texts == ['"v,j,2', "w,k,3", "x,l,4"]


def test_unclosed_quote_costs_no_more_than_the_longest_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LONGEST_FIELD", 100)
    content = 'user,item,time\n"' + "u,i,1\n" * 100
    taken = take(tmp_path / "e.csv", content.encode(), CSV)
    assert len(taken.bad) == -(-101 // len("u,i,1\n"))
    assert len(taken.rows) + len(taken.bad) == 100


def test_reading_leaves_the_limit_of_the_csv_module_as_it_was(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    take(tmp_path / "e.csv", b"user,item,time\nu,i,1\n", CSV)
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n"], ids=["nothing", "mark", "blank"])
def test_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"e\.tsv is empty, or its first line is"):
        take(tmp_path / "e.tsv", content)


def test_header_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"e\.csv holds no rows below its header"):
        take(tmp_path / "e.csv", b"user,item,time\n\n", CSV)


def test_missing_column_is_refused_with_the_closest_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'time' \(did you mean 'timed'\?\); it has 'user', 'item', 'timed'"):
        take(tmp_path / "e.csv", b"user,item,timed\nu,i,1\n", CSV)


@pytest.mark.parametrize("layout", [CSV, Text(",", ("user", "item", "time")), Text("::", header=True)])
def test_wrong_delimiter_is_refused_with_the_one_that_would_fit(tmp_path: Path, layout: Text) -> None:
    with pytest.raises(UserError, match="The delimiter ';' would fit"):
        take(tmp_path / "e.csv", b"user;item;time\nu;i;1\n", layout)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more than one column called 'item'"):
        take(tmp_path / "e.csv", b"user,item,time,item\nu,i,1,j\n", CSV)


def test_header_must_agree_with_the_stated_columns(tmp_path: Path) -> None:
    layout = Text("\t", ("user", "item", "time"), header=True)
    assert take(tmp_path / "e.tsv", b"user\titem\ttime\nu\ti\t1\n", layout).rows == [("u", "i", 1)]
    with pytest.raises(UserError, match="must begin with the columns 'user', 'item', 'time', got 'item', 'user', 'time'"):
        take(tmp_path / "e.tsv", b"item\tuser\ttime\nu\ti\t1\n", layout)


@pytest.mark.parametrize("layout", [Text("::", header=True, quote='"'), Text(",", header=True, quote='""')])
def test_quotes_need_single_characters(tmp_path: Path, layout: Text) -> None:
    with pytest.raises(UserError, match="must each be one character"):
        take(tmp_path / "e.csv", b"user,item,time\nu,i,1\n", layout)


def test_header_with_an_open_quote_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"quotes of the header .* do not match"):
        take(tmp_path / "e.csv", b'user,item,"time\nu,i,1\n', CSV)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress], ids=["gzip", "bzip2"])
@pytest.mark.parametrize("name", ["e.csv.packed", "e.csv"])
def test_archive_that_was_cut_short_is_refused(tmp_path: Path, name: str, pack: Any) -> None:
    packed = pack(b"user,item,time\n" + b"u,i,1\n" * 1000)
    with pytest.raises(UserError, match="cannot be read"):
        take(tmp_path / name, packed[:-20], Text(",", header=True))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress], ids=["gzip", "bzip2"])
def test_archive_of_several_parts_is_read_whole(tmp_path: Path, pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As programs write that compress with several processors; whatever the size of what is read at a time."""
    parts = [pack(f"u{n}\ti\t{n}\n".encode()) for n in range(5)]
    for size in (1, 7, 2**18):
        monkeypatch.setattr(chunks, "PACKED_BYTES", size)
        assert take(tmp_path / "e.tsv", b"".join(parts)).rows == [(f"u{n}", "i", n) for n in range(5)]


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress], ids=["gzip", "bzip2"])
def test_archive_with_a_broken_later_part_is_refused(tmp_path: Path, pack: Any, place: int) -> None:
    first, second = pack(b"u\ti\t1\n"), bytearray(pack(b"v\tj\t2\n"))
    second[place if pack is bz2.compress else min(place, 2)] ^= 255
    with pytest.raises(UserError, match="cannot be read"):
        take(tmp_path / "e.tsv", first + second)


def test_bzip2_with_one_flipped_byte_is_refused(tmp_path: Path) -> None:
    packed = bytearray(bz2.compress(b"u\ti\t1\n" * 1000))
    packed[len(packed) // 2] ^= 1
    with pytest.raises(UserError, match="cannot be read"):
        take(tmp_path / "e.tsv", bytes(packed))


def test_bzip2_takes_no_more_memory_than_a_few_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2**16)
    (tmp_path / "e.tsv").write_bytes(bz2.compress(b"u\ti\t1\n" * 1_000_000))
    tracemalloc.start()
    try:
        assert sum(chunk.count(b"\n") for chunk, _ in chunks.whole_lines(tmp_path / "e.tsv")) == 1_000_000
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "LONGEST_LINE", 2**10)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2**8)
    with pytest.raises(UserError, match="is it a text file"):
        take(tmp_path / "e.tsv", b"u\ti\t1\n" + b"x" * 2**12)


@pytest.mark.parametrize("layout", [TSV, Text("\t", ("user", "item", "time"), quote='"')], ids=["plain", "quoted"])
def test_chunks_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Text) -> None:
    content = "".join(f"u{n}\t{'i' * (n % 50 + 1)}\t{n if n % 7 else 'x'}\n" + "\n" * (n % 3 == 0) for n in range(60))
    whole = take(tmp_path / "e.tsv", content.encode(), layout)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 64)
    monkeypatch.setattr(rows, "CHUNK_ROWS", 5)
    assert take(tmp_path / "e.tsv", None, layout) == whole
    assert (whole.intake.rows, whole.intake.blank, len(whole.bad)) == (60, 20, 9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2020-01-02", datetime(2020, 1, 2, tzinfo=UTC)),
        ("2020-01-02T03:04", datetime(2020, 1, 2, 3, 4, tzinfo=UTC)),
        ("2020-01-02 03:04:05", datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2020-01-02T03:04:05.999999", datetime(2020, 1, 2, 3, 4, 5, 999_000, tzinfo=UTC)),
        ("2020-01-02T03:04:05.123456789Z", datetime(2020, 1, 2, 3, 4, 5, 123_000, tzinfo=UTC)),
        ("2020-01-02T03:04:05+02:00", datetime(2020, 1, 2, 1, 4, 5, tzinfo=UTC)),
        ("2020-01-02T03:04+17", datetime(2020, 1, 1, 10, 4, tzinfo=UTC)),
        ("2020-01-02T03:04:05-0130", datetime(2020, 1, 2, 4, 34, 5, tzinfo=UTC)),
        ("1970-01-01", datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_iso_times_become_milliseconds_of_utc(tmp_path: Path, text: str, expected: datetime) -> None:
    taken = take(tmp_path / "e.tsv", f"u\ti\t{text}\n".encode(), time="iso")
    assert taken.rows == [("u", "i", round(expected.timestamp() * 1000))]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2020-1-2", "time is not an ISO 8601 time"),
        ("02/01/2020", "time is not an ISO 8601 time"),
        ("1577934245", "time is not an ISO 8601 time"),
        ("2020-02-30", "time is not on the calendar"),
        ("2020-01-01T25:00", "time is not on the calendar"),
        ("2020-01-01T24:00", "time is not on the calendar"),
        ("2020-01-01T00:00+18:00", "time is not an ISO 8601 time"),
        ("2020-01-01T00:00+01:60", "time is not an ISO 8601 time"),
        ("1969-12-31T23:59:59.5", "time is before 1970"),
    ],
)
def test_other_times_are_bad_rows(tmp_path: Path, text: str, reason: str) -> None:
    assert take(tmp_path / "e.tsv", f"u\ti\t{text}\n".encode(), time="iso").bad == [(1, reason)]


@pytest.mark.parametrize(("text", "value"), [("4", 4.0), ("-0.5", -0.5), (".5", 0.5), ("5.", 5.0), ("1e3", 1000.0), ("", None)])
def test_values_are_finite_numbers(tmp_path: Path, text: str, value: float | None) -> None:
    select = {"user": "user", "item": "item", "value": "time"}
    assert take(tmp_path / "e.tsv", f"u\ti\t{text}\n".encode(), select=select).rows == [("u", "i", value)]


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-Infinity", "four", "4,5", "0x10", "1_000"])
def test_other_values_are_bad_rows(tmp_path: Path, text: str) -> None:
    select = {"user": "user", "item": "item", "value": "time"}
    assert take(tmp_path / "e.tsv", f"u\ti\t{text}\n".encode(), select=select).bad == [(1, "value is not a finite number")]


def test_value_beyond_float64_is_a_bad_row(tmp_path: Path) -> None:
    select = {"user": "user", "item": "item", "value": "time"}
    assert take(tmp_path / "e.tsv", b"u\ti\t1e999\n", select=select).bad == [(1, "value does not fit in a float64")]


def test_labels_are_places_and_nothing_else_is_one(tmp_path: Path) -> None:
    select = {"user": "user", "item": "item", "label": "time"}
    taken = take(tmp_path / "e.tsv", b"u\ti\ttest\nu\tj\ttrain\nu\tk\tvalid\nu\tl\tTest\nu\tm\t\n", select=select)
    assert [label for *_, label in taken.rows] == [2, 0, 1]
    told = "label is none of train, valid, test, which atomic files call 0, 1, 2"
    assert taken.bad == [(4, told), (5, told)]


def test_order_may_not_be_missing(tmp_path: Path) -> None:
    select = {"user": "user", "item": "item", "order": "time"}
    taken = take(tmp_path / "e.tsv", b"u\ti\t-3\nu\tj\t\n", select=select)
    assert taken.rows == [("u", "i", -3)]
    assert taken.bad == [(2, "order is empty")]


def test_rows_left_out_are_counted_and_not_validated(tmp_path: Path) -> None:
    taken = take(tmp_path / "e.tsv", b"u\ti\t1\nu\ti\tx\nv\tj\t2\n", where="time <> 'x'")
    assert taken.rows == [("u", "i", 1), ("v", "j", 2)]
    assert (taken.intake.rows, taken.intake.left_out, taken.bad) == (3, 1, [])


def test_derived_columns_are_checked_like_others(tmp_path: Path) -> None:
    derive = {"item": "upper(item)", "time": "CAST(CAST(time AS BIGINT) * 60 AS VARCHAR)"}
    taken = take(tmp_path / "e.tsv", b"u\ti\t2\nu\tj\t-1\n", select={"user": "user"}, derive=derive)
    assert taken.rows == [("u", "I", 120)]
    assert taken.bad == [(2, "time is before 1970")]


@pytest.mark.parametrize("where", ["tme = '1'", "time = ", "CAST(item AS BIGINT) > 0"])
def test_sql_that_does_not_run_is_the_users_to_mend(tmp_path: Path, where: str) -> None:
    with pytest.raises(UserError, match="The SQL stated for the columns does not run"):
        take(tmp_path / "e.tsv", b"u\ti\t1\n", where=where)


@pytest.mark.parametrize("name", ["_reason", "position", "Position"])
def test_names_of_the_staging_table_are_refused(tmp_path: Path, name: str) -> None:
    table = RawTable((tmp_path / "i.csv",), CSV, {"item": "item", name: "x"})
    with pytest.raises(UserError, match="because turborec's own is"):
        staged(table, item_checks(table), 0.0)


def test_unknown_and_missing_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No column may be called 'tiem' here"):
        take(tmp_path / "e.tsv", b"u\ti\t1\n", select={"user": "user", "item": "item", "tiem": "time"})
    with pytest.raises(UserError, match="A column must be selected as 'item'; user are"):
        take(tmp_path / "e.tsv", b"u\ti\t1\n", select={"user": "user"})


def test_columns_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'item', 'Item' differ in upper and lower case only"):
        take(tmp_path / "e.csv", b"item,Item,time\nu,i,1\n", CSV, {"user": "item", "item": "Item"})


def test_attributes_are_text_and_null_where_empty(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_bytes(b'item,title,text\n1,"A, B",007\n2,,x\n')
    table = RawTable((tmp_path / "i.csv",), CSV, {"item": "item", "title": "title", "text": "text"})
    assert staged(table, item_checks(table), 0.0).rows == [("1", "A, B", "007"), ("2", None, "x")]


def test_several_files_are_one_table_whose_bad_rows_name_their_file(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"u\ti\t1\n")
    (tmp_path / "b.tsv").write_bytes(b"u\tj\t2\nbad\n")
    table = RawTable((tmp_path / "a.tsv", tmp_path / "b.tsv"), TSV, {"user": "user", "item": "item"})
    with pytest.raises(UserError, match=r"1 of 3 rows are bad.*\n  b\.tsv:2: 1 columns instead of 3: bad\n"):
        staged(table, event_checks("seconds"), 0.3)
    assert staged(table, event_checks("seconds"), 0.34).rows == [("u", "i"), ("u", "j")]


def test_first_five_bad_rows_are_listed(tmp_path: Path) -> None:
    (tmp_path / "e.tsv").write_bytes(b"".join(b"bad %d\n" % n for n in range(9)))
    with pytest.raises(UserError) as caught:
        staged(RawTable((tmp_path / "e.tsv",), TSV, {"user": "user", "item": "item"}), event_checks("seconds"), 0.5)
    assert [line for line in str(caught.value).splitlines() if "e.tsv:" in line] == [
        f"  e.tsv:{n + 1}: 1 columns instead of 3: bad {n}" for n in range(5)
    ]


def test_quarantine_is_one_line_a_row_however_long_the_row(tmp_path: Path) -> None:
    write_quarantine(tmp_path / "q.tsv", [("a.tsv", 3, "user is empty", "\\ti"), ("b.tsv", 4, "not valid UTF-8", "x")])
    lines = (tmp_path / "q.tsv").read_text().splitlines()
    assert lines == ["file\tline\treason\trow", "a.tsv\t3\tuser is empty\t\\ti", "b.tsv\t4\tnot valid UTF-8\tx"]
    taken = take(tmp_path / "e.tsv", b"u\ti\t1\n" + b"x" * 1000 + b"\n")
    assert [len(text) for text in taken.texts] == [200]


@pytest.mark.parametrize("form", ["parquet", "arrow", "stream"])
def test_columnar_files_are_told_apart_by_their_bytes(tmp_path: Path, form: str) -> None:
    table = pa.table({"user": [1, 2], "item": ["a", "b"], "time": [5, None]})
    if form == "parquet":
        pq.write_table(table, tmp_path / "e")
    else:
        writer = pa.ipc.new_file if form == "arrow" else pa.ipc.new_stream
        with writer(tmp_path / "e", table.schema) as file:
            file.write_table(table, max_chunksize=1)
    assert take(tmp_path / "e", None, Columnar()).rows == [("1", "a", 5), ("2", "b", None)]


@pytest.mark.parametrize(
    ("column", "time", "expected"),
    [
        (pa.array([7, None], pa.int16()), "seconds", [7, None]),
        (pa.array([1.7e12, 978300760.0]), "milliseconds", [1_700_000_000_000, 978_300_760]),
        (pa.array([datetime(2020, 1, 2, 3, 4, 5)] * 2), "iso", [1_577_934_245_000] * 2),
        (pa.array([1_577_934_245, 0], pa.timestamp("s", "Europe/Paris")), "iso", [1_577_934_245_000, 0]),
        (pa.array([1_577_934_245_999_999_999, 1], pa.timestamp("ns")), "iso", [1_577_934_245_999, 0]),
        (pa.array([1, 0], pa.date32()), "iso", [86_400_000, 0]),
        (pa.array(["12", "34"]).dictionary_encode(), "seconds", [12, 34]),
    ],
    ids=["int16", "float", "datetime", "zone", "ns", "date", "dictionary"],
)
def test_columns_of_any_type_are_read_as_text(tmp_path: Path, column: pa.Array, time: TimeFormat, expected: list[int]) -> None:
    table = pa.table({"user": ["u", "v"], "item": ["i", "j"], "time": column})
    assert [row[2] for row in take(tmp_path / "e", table, Columnar(), time=time).rows] == expected


def test_whole_floats_are_the_same_ids_as_integers(tmp_path: Path) -> None:
    table = pa.table({"user": [102.0, 3e9], "item": [0.5, -1.0], "time": [1, 2]})
    assert take(tmp_path / "e", table, Columnar()).rows == [("102", "0.5", 1), ("3000000000", "-1", 2)]


def test_columnar_bad_rows_are_numbered(tmp_path: Path) -> None:
    table = pa.table({"user": ["u", None, "w", "x"], "item": ["i", "j", "", "l"], "time": [1.0, 2.0, 3.0, 102.7]})
    taken = take(tmp_path / "e", table, Columnar())
    assert taken.rows == [("u", "i", 1)]
    assert taken.bad == [(2, "user is empty"), (3, "item is empty"), (4, "time is not a whole number")]


def test_lists_are_joined_and_other_nested_columns_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"item": [1, 2], "genres": [["a", "b"], None], "nested": [{"x": 1}] * 2}), tmp_path / "i")
    table = RawTable((tmp_path / "i",), Columnar(), {"item": "item", "genres": "genres"})
    assert staged(table, item_checks(table), 0.0).rows == [("1", "a|b"), ("2", None)]
    table = RawTable((tmp_path / "i",), Columnar(), {"item": "item", "nested": "nested"})
    with pytest.raises(UserError, match=r"column 'nested', of type struct.* cannot be written as text"):
        staged(table, item_checks(table), 0.0)


def test_columnar_text_must_be_utf_8(tmp_path: Path) -> None:
    item = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    with pytest.raises(UserError, match=r"column 'item', of type string, cannot be written as text: .*UTF8"):
        take(tmp_path / "e", pa.table({"user": ["u"], "item": item, "time": [1]}), Columnar())


@pytest.mark.parametrize("content", [b"", b"user\titem\n", b"PAR1 and no more", b"ARROW1 and no more"])
def test_file_that_is_not_columnar_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        take(tmp_path / "e", content, Columnar())


field = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\x00"), max_size=6)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.lists(field, min_size=1, max_size=4), min_size=1, max_size=20))
def test_every_line_is_a_row_or_bad_or_blank(tmp_path: Path, lines: list[list[str]]) -> None:
    texts = ["u\ti", *("\t".join(fields) for fields in lines)]
    taken = take(
        tmp_path / "e.tsv", "\n".join([*texts, ""]).encode(), Text("\t", ("user", "item")), {"user": "user", "item": "item"}
    )
    expected = [tuple(fields) for fields in [["u", "i"], *lines] if len(fields) == 2 and all(fields)]
    assert taken.rows == expected
    assert taken.intake.blank == texts.count("")
    assert len(taken.rows) + len(taken.bad) + taken.intake.blank == len(texts)
    assert [text.replace("\\t", "\t").replace("\\\\", "\\") for text in taken.texts] == [
        texts[line - 1] for line, _ in taken.bad
    ]


any_field = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), min_size=1, max_size=6)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(any_field, any_field), min_size=1, max_size=20))
def test_quoted_rows_come_back_as_they_were_written(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([("user", "item"), *pairs])
    assert take(tmp_path / "e.csv", buffer.getvalue().encode(), CSV, {"user": "user", "item": "item"}).rows == pairs


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), quote=st.sampled_from(["", '"']), encoding=st.sampled_from(["utf-8", "latin-1"]))
def test_random_bytes_raise_nothing_but_what_the_user_can_mend(
    tmp_path: Path, content: bytes, quote: str, encoding: Any
) -> None:
    layout = Text(",", ("user", "item", "time"), quote=quote, encoding=encoding)
    try:
        taken = take(tmp_path / "e.csv", content, layout)
    except UserError:
        return
    assert len(taken.rows) + len(taken.bad) == taken.intake.rows


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), magic=st.sampled_from([b"PAR1", b"ARROW1", b"\x1f\x8b", b""]))
def test_random_bytes_are_no_columnar_file(tmp_path: Path, content: bytes, magic: bytes) -> None:
    with pytest.raises(UserError):
        take(tmp_path / "e", magic + content, Columnar())


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["1600000000", "", "978300760"], "seconds"),
        (["1600000000000", "1600000000001"], "milliseconds"),
        (["2014-07-22", "2014-07-22T10:00:00Z"], "iso"),
        (["", "2014-07-22 10:00"], "iso"),
        (["yesterday", "today"], "seconds"),
        (["", ""], "seconds"),
        (["12", "2014-07-22", "13"], "seconds"),
    ],
)
def test_how_times_are_written_shows_in_the_first_rows(tmp_path: Path, times: list[str], expected: str) -> None:
    path = tmp_path / "e.tsv"
    path.write_text("".join(f"u\ti\t{time}\n" for time in times))
    assert time_format(RawTable((path,), TSV, {"user": "user", "item": "item", "time": "time"})) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user,item\na,b\n".encode("utf-16"), "is UTF-16"),
        ("user,item\na,b\n".encode("utf-16-le"), "is UTF-16"),
        (b"user,item\ra,b\rc,d\r", "end in CR alone"),
    ],
)
def test_files_of_other_machines_are_named_as_such(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        take(tmp_path / "e.csv", content, CSV, {"user": "user", "item": "item"})
