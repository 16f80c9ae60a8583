import ast
import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intake import Taken, staged, take
from turborec.data import chunks, json_lines
from turborec.data.read import item_checks, time_format
from turborec.data.schema import JsonLines, RawTable
from turborec.errors import UserError

JSON = JsonLines(("user", "item", "time"))
PYTHON = JsonLines(("user", "item", "time"), syntax="python")
SOUND = b'{"user": "a", "item": "b", "time": 1}\n'


def attributes(path: Path, content: bytes, layout: JsonLines) -> Taken:
    """The items and their attribute `x`."""
    path.write_bytes(content)
    table = RawTable((path,), layout, {"item": "item", "x": "x"})
    return staged(table, item_checks(table), 1.0)


def test_objects_are_rows_whatever_the_order_of_their_keys(tmp_path: Path) -> None:
    content = b'{"user": "u1", "item": "i1", "time": 5}\n{"more": [1], "time": 6, "item": "i2", "user": "u2"}\n'
    taken = take(tmp_path / "e.json", content, JSON)
    assert taken.rows == [("u1", "i1", 5), ("u2", "i2", 6)]
    assert (taken.intake.rows, taken.intake.blank, taken.intake.rejected) == (2, 0, {})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("user: u", "not JSON"),
        ("{'user': 'u', 'item': 'i'}", "not JSON"),
        ('{"user": "u", "item": "i"', "not JSON"),
        ('{"user": "u", "item": "i"} x', "not JSON"),
        ('{"user": "u", "item": "i"},', "not JSON"),
        ('{"user": "u", "item": "i", "time": NaN}', "not JSON"),
        ('{"user": "u", "item": "i", "time": 01}', "not JSON"),
        ('{"user": "u\x00", "item": "i"}', "not JSON"),
        ('{"user": "u\\ud800", "item": "i"}', "not JSON"),
        (" ", "not JSON"),
        ('{"user": "u", "item": "i", "x": ' + "[" * 10_000 + "]" * 10_000 + "}", "not JSON"),
        ('{"user": "u", "item": "i", "time": ' + "9" * 5000 + "}", "not JSON"),
        ("[1, 2]", "not an object"),
        ("null", "not an object"),
        ('"u"', "not an object"),
        ("7", "not an object"),
        ("{}", "user is empty"),
        ('{"item": "i", "time": 1}', "user is empty"),
        ('{"user": null, "item": "i"}', "user is empty"),
        ('{"user": "", "item": "i"}', "user is empty"),
        ('{"user": {"id": "u"}, "item": "i"}', "user is empty"),
        ('{"user": "u", "item": []}', "item is empty"),
        ('{"user": "u\\u0000", "item": "i"}', "user holds a NUL byte"),
        ('{"user": "u", "item": "i", "time": "soon"}', "time is not a whole number"),
        ('{"user": "u", "item": "i", "time": 1.5}', "time is not a whole number"),
        ('{"user": "u", "item": "i", "time": true}', "time is not a whole number"),
        ('{"user": "u", "item": "i", "time": 1e400}', "time is not a whole number"),
        ('{"user": "u", "item": "i", "time": 99999999999999999999}', "time does not fit in 64 bits"),
        ('{"user": "u", "item": "i", "time": -1}', "time is before 1970"),
    ],
)
def test_bad_line_is_set_aside_with_its_number(tmp_path: Path, line: str, reason: str) -> None:
    taken = take(tmp_path / "e.json", SOUND + b"\n" + line.encode() + b"\n" + SOUND, JSON)
    assert taken.rows == [("a", "b", 1)] * 2
    assert taken.bad == [(3, reason)]
    assert (taken.intake.rows, taken.intake.blank, taken.intake.rejected) == (3, 1, {reason: 1})


@pytest.mark.parametrize(
    "line",
    [
        "__import__('os').system('true')",
        "{'user': __import__('os').getcwd(), 'item': 'i'}",
        "{'user': open('secret').read(), 'item': 'i'}",
        "{'user': (lambda: 'u')(), 'item': 'i'}",
        "{'user': [x for x in 'u'][0], 'item': 'i'}",
        "{'user': f'{1}', 'item': 'i'}",
        "{'user': user, 'item': 'i'}",
        '{"user": "u", "item": "i", "time": null}',
        "{'user': 'u', 'item': 'i'",
        "{['u']: 'user'}",
        "{'user': 'u', 'item': 'i', 'time': " + "9" * 5000 + "}",
        "{'user': 'u', 'item': 'i', 'x': " + "[" * 10_000 + "]" * 10_000 + "}",
        "{'user': 'u', 'item': 'i', 'x': " + "-" * 100_000 + "1}",
        "{'user': 'u', 'item': 'i', 'x': " + "1+" * 100_000 + "1}",
        "{'user': 'u\x00', 'item': 'i'}",
    ],
)
def test_python_that_is_no_literal_is_a_bad_line_and_is_not_run(tmp_path: Path, line: str) -> None:
    sound = b"{'user': 'a', 'item': 'b', 'time': 1}\n"
    taken = take(tmp_path / "e.json", sound + line.encode() + b"\n" + sound, PYTHON)
    assert taken.rows == [("a", "b", 1)] * 2
    assert taken.bad == [(2, "not a Python literal")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [("['u', 'i']", "not an object"), (r"{'user': 'u\ud800', 'item': 'i'}", "holds half a character")],
)
def test_python_literals_that_are_no_rows_are_bad_lines(tmp_path: Path, line: str, reason: str) -> None:
    assert take(tmp_path / "e.json", line.encode(), PYTHON).bad == [(1, reason)]


def test_python_literals_keep_what_json_would_not_read(tmp_path: Path) -> None:
    content = b"{'user': u'd\\'Arc', 'item': \"\\xe9\\d\", 'time': None, 'related': {'x': ('y',)}}\n"
    assert take(tmp_path / "e.json", content, PYTHON).rows == [("d'Arc", "é\\d", None)]


@pytest.mark.parametrize("layout", [JsonLines(("item", "x")), JsonLines(("item", "x"), syntax="python")])
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('"a\\tb\\n"', "a\tb\n"),
        ('""', None),
        ("5", "5"),
        ("5.0", "5"),
        ("-0.5", "-0.5"),
        ("12.99", "12.99"),
        ("1e22", "1e+22"),
        ("123456789012345678901", "123456789012345678901"),
        ('["a", "b", 1.0]', "a|b|1"),
        ('[["a", "b"], [], ["c"]]', "a|b||c"),
        ("[]", None),
        ('{"a": 1}', None),
        ('["a", {"b": 1}]', "a"),
    ],
)
def test_values_become_text_in_one_way(tmp_path: Path, value: str, text: str | None, layout: JsonLines) -> None:
    taken = attributes(tmp_path / "i.json", f'{{"item": 1, "x": {value}}}\n'.encode(), layout)
    assert taken.rows == [("1", text)]


def test_truth_and_nothing_are_text_and_null(tmp_path: Path) -> None:
    content = b'{"item": 1, "x": true}\n{"item": 2, "x": null}\n{"item": 3}\n'
    assert attributes(tmp_path / "i.json", content, JsonLines(("item", "x"))).rows == [("1", "true"), ("2", None), ("3", None)]
    content = b"{'item': 1, 'x': False}\n{'item': 2, 'x': {'a', 'b'}}\n{'item': 3, 'x': b'a'}\n"
    taken = attributes(tmp_path / "i.json", content, JsonLines(("item", "x"), syntax="python"))
    assert taken.rows == [("1", "false"), ("2", None), ("3", None)]


def test_of_a_key_that_comes_twice_the_last_counts(tmp_path: Path) -> None:
    assert take(tmp_path / "e.json", b'{"user": "u", "item": "i", "user": "v"}\n', JSON).rows == [("v", "i", None)]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress], ids=["plain", "gzip", "bzip2"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_mark_compression_and_line_ends_are_seen_through(tmp_path: Path, pack: Any, end: str, last: bool) -> None:
    lines = end.join(['{"user": "u", "item": "i", "time": 1}', "", '{"user": "v", "item": "j", "time": 2}']) + end * last
    taken = take(tmp_path / "e.json", pack(b"\xef\xbb\xbf" + lines.encode()), JSON)
    assert taken.rows == [("u", "i", 1), ("v", "j", 2)]
    assert taken.intake.blank == 1


def test_bytes_of_another_encoding_are_a_bad_line(tmp_path: Path) -> None:
    content = SOUND + '{"user": "é", "item": "i"}\n'.encode("latin-1") + SOUND
    taken = take(tmp_path / "e.json", content, JSON)
    assert taken.rows == [("a", "b", 1)] * 2
    assert taken.bad == [(2, "not valid UTF-8")]


def test_text_may_be_a_megabyte_long(tmp_path: Path) -> None:
    long = "x" * 2**20
    assert take(tmp_path / "e.json", json.dumps({"user": long, "item": "i"}).encode(), JSON).rows == [(long, "i", None)]


def test_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "LONGEST_LINE", 2**10)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2**8)
    with pytest.raises(UserError, match="is it a text file"):
        take(tmp_path / "e.json", SOUND + b'{"user": "' + b"x" * 2**12, JSON)


def test_archive_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        take(tmp_path / "e.json.gz", gzip.compress(SOUND * 1000)[:-20], JSON)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\n"], ids=["nothing", "mark", "blank"])
def test_empty_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"e\.json holds no rows"):
        take(tmp_path / "e.json", content, JSON)
    with pytest.raises(UserError, match="does not begin with objects, one a line"):
        take(tmp_path / "e.json", content, JsonLines())


def test_utf_16_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is UTF-16"):
        take(tmp_path / "e.json", SOUND.decode().encode("utf-16"), JSON)


def test_keys_that_are_not_stated_show_in_the_first_objects(tmp_path: Path) -> None:
    content = b'{"user": "u", "item": "i"}\nbad\n{"user": "u", "item": "j", "time": 3}\n'
    taken = take(tmp_path / "e.json", content, JsonLines())
    assert taken.rows == [("u", "i", None), ("u", "j", 3)]
    assert taken.bad == [(2, "not JSON")]
    with pytest.raises(UserError, match=r"no column 'time' \(did you mean 'tme'\?\); it has 'user', 'item', 'tme'"):
        take(tmp_path / "e.json", b'{"user": "u", "item": "i", "tme": 3}\n', JsonLines())


def test_objects_in_a_list_are_rows_with_the_keys_of_their_line(tmp_path: Path) -> None:
    content = (
        b'{"user": 7, "time": 1, "events": [{"item": "a"}, {"item": "b", "time": 2}]}\n'
        b'{"user": 8, "events": []}\n'
        b'{"user": 9, "events": [{"item": "", "time": 1}, {"item": "c", "time": 3}]}\n'
    )
    taken = take(tmp_path / "e.json", content, JsonLines(rows="events"))
    assert taken.rows == [("7", "a", 1), ("7", "b", 2), ("9", "c", 3)]
    assert taken.bad == [(3, "item is empty")]
    assert taken.intake.rows == 4


@pytest.mark.parametrize("events", ["", ', "events": 1', ', "events": {"item": "a"}', ', "events": [{"item": "a"}, 2]'])
def test_line_without_a_list_of_objects_is_bad(tmp_path: Path, events: str) -> None:
    taken = take(tmp_path / "e.json", f'{{"user": 7{events}}}\n'.encode(), JsonLines(("user", "item", "time"), rows="events"))
    assert taken.bad == [(1, "events is no list of objects")]


@pytest.mark.parametrize("rows", [None, "events"])
def test_chunks_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str | None) -> None:
    events = [{"user": f"u{n}", "item": "i" * (n % 50 + 1), "time": n if n % 7 else "x"} for n in range(60)]
    lines = [
        json.dumps({"events": [event, event]} if rows else event) + "\n" * (1 + (n % 3 == 0)) for n, event in enumerate(events)
    ]
    layout = JsonLines(("user", "item", "time"), rows=rows)
    whole = take(tmp_path / "e.json", "".join([*lines, "bad\n"]).encode(), layout)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 64)
    assert take(tmp_path / "e.json", None, layout) == whole
    assert (whole.intake.blank, len(whole.bad)) == (20, 9 * (1 + bool(rows)) + 1)
    assert whole.bad[-1] == (81, "not JSON")


def test_how_times_are_written_shows_in_the_first_objects(tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text('{"user": "u", "item": "i", "time": 1600000000000}\n')
    table = RawTable((tmp_path / "e.json",), JSON, {"user": "user", "item": "item", "time": "time"})
    assert time_format(table) == "milliseconds"


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["user", "item", "x"]), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(any_json, min_size=1, max_size=8), syntax=st.sampled_from(["json", "python"]))
def test_every_line_is_a_row_or_bad(tmp_path: Path, values: list[Any], syntax: Any) -> None:
    written = [json.dumps(value) if syntax == "json" else repr(value) for value in values]
    select = {"user": "user", "item": "item"}
    taken = take(tmp_path / "e.json", "\n".join(written).encode(), JsonLines(("user", "item"), syntax=syntax), select)
    assert len(taken.rows) + len(taken.bad) == taken.intake.rows == len(values)
    read = [json.loads(text) if syntax == "json" else ast.literal_eval(text) for text in written if "inf" not in text]
    texts = [v for v in read if isinstance(v, dict) and all(isinstance(v.get(k), str) and v[k] for k in select)]
    assert {(v["user"], v["item"]) for v in texts if "\0" not in v["user"] + v["item"]} <= set(taken.rows)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), syntax=st.sampled_from(["json", "python"]))
def test_random_bytes_raise_nothing_but_what_the_user_can_mend(tmp_path: Path, content: bytes, syntax: Any) -> None:
    try:
        taken = take(tmp_path / "e.json", content, JsonLines(("user", "item", "time"), syntax=syntax))
    except UserError:
        return
    assert len(taken.rows) + len(taken.bad) == taken.intake.rows


@pytest.mark.parametrize("syntax", ["json", "python"])
def test_a_line_that_would_take_too_much_memory_is_a_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: Any
) -> None:
    monkeypatch.setattr(json_lines, "LONGEST", {"json": 40, "python": 40})
    path = tmp_path / "lines.json"
    path.write_text('{"a": "x"}\n{"a": [' + "1," * 30 + '1]}\n{"a": "y"}\n')
    (run,) = json_lines.object_runs(path, JsonLines(("a",), syntax=syntax), ["a"])
    assert run.table["a"].to_pylist() == ["x", "y"]
    assert [(fault.line, fault.reason) for fault in run.faults] == [(2, "longer than 40 characters")]
