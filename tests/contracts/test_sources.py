"""What holds for every source because its file exists: each has raw fixtures, is pure to parse, and prepares.

A fixture is a folder `tests/fixtures/<source>/<case>` with the configuration in `source.yaml` beside the raw files.
"""

import ast
import bz2
import csv
import gzip
import json
import re
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow.parquet as pq
import pytest

from turborec import recipe
from turborec.data.prepare import Prepare, prepare
from turborec.data.schema import (
    ENTRY,
    FEATURE_NAME,
    KEY,
    LIST,
    PLACE,
    UNKNOWN_TIME,
    JsonLines,
    JsonObject,
    Listed,
    RawTable,
    RawTables,
    Text,
)
from turborec.data.split import LeaveOneOut
from turborec.data.store import open_store
from turborec.sources._source import Source

SOURCES = recipe.kinds("turborec.sources")
FIXTURES = Path(__file__).parents[1] / "fixtures"
CASES = [path.parent for name in SOURCES for path in sorted((FIXTURES / name).glob("*/source.yaml"))]
EVENT_COLUMNS = {"user", "item", "time", "order", "value", "kind", "label"}

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}-{case.name}")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a source went online although its files are there")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def configured(case: Path) -> Source:
    tree = recipe.read(case / "source.yaml")
    config = recipe.open_kind("turborec.sources", tree, "source", str(case))
    return cast("Source", recipe.validate(config, tree, str(case)))


def copied(case: Path, folder: Path) -> Path:
    return shutil.copytree(case, folder, ignore=lambda *_: ["source.yaml"], dirs_exist_ok=True)


def ready(case: Path, folder: Path) -> tuple[Source, RawTables]:
    source = configured(case)
    source.download(copied(case, folder))
    return source, source.parse(folder)


def tables(raw: RawTables) -> list[RawTable]:
    named = [raw.events] if raw.items is None else [raw.events, raw.items]
    return [*named, *(lookup.table for table in named for lookup in table.lookups.values())]


def paths(raw: RawTables) -> list[Path]:
    described = [path for table in tables(raw) for path in table.paths]
    return described + [path for table in raw.features.values() for path in table.files]


def names(table: RawTable) -> set[str]:
    return {*table.select, *table.derive, *table.constants, *table.lookups}


def columns(path: Path, layout: object) -> Iterable[str]:
    opener = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, open)
    if isinstance(layout, JsonLines):
        read = json.loads if layout.syntax == "json" else ast.literal_eval
        with opener(path, "rt", encoding="utf-8") as file:
            objects = [read(line) for line in file]
        return {key for row in objects for key in [*row, *(k for inner in row.get(layout.rows, []) for k in inner)]}
    if isinstance(layout, Listed):
        return {*columns(path, layout.text), LIST, ENTRY, PLACE}
    if isinstance(layout, JsonObject):
        with opener(path, "rt", encoding="utf-8") as file:
            assert isinstance(json.load(file), dict)
        return {KEY, *(layout.columns or (ENTRY, PLACE))}
    if not isinstance(layout, Text):
        return pq.read_schema(path).names
    with opener(path, "rt", encoding=layout.encoding, newline="") as file:
        line = file.readline().rstrip("\r\n")
    first = next(csv.reader([line])) if layout.quote and layout.delimiter == "," else line.split(layout.delimiter)
    if layout.header:
        assert layout.columns is None or list(layout.columns) == first
        return first
    assert layout.columns is not None and len(layout.columns) == len(first)
    return layout.columns


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_fixtures_and_bears_its_file_name(name: str) -> None:
    cases = [case for case in CASES if case.parent.name == name]
    assert cases, f"add tests/fixtures/{name}/<case>/source.yaml and raw files"
    assert all(configured(case).kind == name for case in cases)


@each_case
def test_configuration_survives_the_round_trip(case: Path) -> None:
    source = cast("recipe.Config", configured(case))
    assert recipe.validate(type(source), recipe.parse(recipe.dump(source), "dump"), "dump") == source


@each_case
def test_parse_is_pure_and_the_same_every_time(case: Path, tmp_path: Path) -> None:
    source, raw = ready(case, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert source.parse(tmp_path) == raw == configured(case).parse(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@each_case
def test_download_again_changes_nothing(case: Path, tmp_path: Path) -> None:
    source, raw = ready(case, tmp_path)
    before = [path.stat().st_mtime_ns for path in paths(raw)]
    source.download(tmp_path)
    assert [path.stat().st_mtime_ns for path in paths(raw)] == before


@each_case
def test_described_files_have_the_selected_columns(case: Path, tmp_path: Path) -> None:
    _, raw = ready(case, tmp_path)
    for table in tables(raw):
        assert table.paths
        for path in table.paths:
            wanted = {*table.select.values(), *(lookup.column for lookup in table.lookups.values())}
            assert wanted <= set(columns(path, table.layout))


@each_case
def test_described_features_are_there_under_proper_names(case: Path, tmp_path: Path) -> None:
    _, raw = ready(case, tmp_path)
    for name, table in raw.features.items():
        assert re.fullmatch(FEATURE_NAME, name)
        assert all(path.is_file() for path in table.files)


@each_case
def test_tables_name_user_and_item_and_nothing_unknown(case: Path, tmp_path: Path) -> None:
    _, raw = ready(case, tmp_path)
    assert {"user", "item"} <= names(raw.events) <= EVENT_COLUMNS
    assert raw.items is None or "item" in names(raw.items)
    assert "\n" not in raw.terms


@each_case
def test_fixture_prepares_to_a_store_of_canonical_types_in_order(case: Path, tmp_path: Path) -> None:
    source, raw = ready(case, tmp_path / "raw")
    store = open_store(prepare(raw, {"kind": source.kind}, Prepare(bad_rows=0), LeaveOneOut(), tmp_path))
    histories = store.histories
    types = [array.dtype for array in (histories.offsets, histories.items, histories.times, store.cuts, store.parts)]
    assert types == [np.int64, np.int32, np.int64, np.int64, np.uint8]
    assert histories.items.min() == 1 and histories.items.max() == store.num_items
    ascending = histories.times[1:] >= histories.times[:-1]  # unknown times first, where an order says so
    ascending[histories.offsets[1:-1] - 1] = True  # from one user to the next
    unknown = histories.times == UNKNOWN_TIME
    assert ascending.all() and (unknown.all() or (histories.times[~unknown] >= 0).all())
    assert "order" in names(raw.events) or unknown.all() or not unknown.any()
    assert all(store.user_ids.raw(range(3))) and all(store.item_ids.raw(range(3)))
    assert store.features.keys() == raw.features.keys()
    assert all(np.isfinite(table).any() for table in store.features.values())
    assert (store.folder / "items.parquet").is_file() == (raw.items is not None)
    assert len(store.users_of("test")) > 0
