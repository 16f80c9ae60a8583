"""Raw tables -> a prepared store: read, clean, number, order, split, and name the result by the hash of what made it.

Letters: U users, E events, V items.
"""

import errno
import fcntl
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from turborec.data import clean
from turborec.data.engine import Engine, duckdb_in, number
from turborec.data.features import form_of, require_sound, write_features
from turborec.data.read import (
    LOOKUP_CHECKS,
    YEAR_1973,
    YEAR_1990,
    YEAR_2200,
    Intake,
    bad_records,
    columns_of,
    event_checks,
    impression_checks,
    ingest,
    item_checks,
    literal,
    time_format,
    write_quarantine,
)
from turborec.data.schema import FILE_STEP, TICKS, RawTable, RawTables
from turborec.data.split import GlobalTime, ItemHoldout, Labelled, Split
from turborec.data.store import FORMAT, Ids, open_store, sha256
from turborec.data.write import seal, write_attributes, write_cuts, write_events, write_ids, write_impressions
from turborec.errors import UserError
from turborec.files import sync
from turborec.progress import task
from turborec.recipe import Config

OUT_OF_MEMORY = ("OutOfMemoryException", "OutOfMemoryError", "Py4JNetworkError")
"""DuckDB's word for it, Java's, and what is left of a Java that the system killed."""
MILLISECONDS = "If the times are milliseconds, say so: data.source.time_format=milliseconds."
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


class Prepare(Config):
    """What is kept of the raw events, in the order in which the filters apply."""

    kinds: Annotated[tuple[str, ...], Field(min_length=1)] | None = None  # the kinds of event to keep; null keeps all
    min_value: float | None = None  # events below it are dropped, and those whose value is unknown
    duplicates: clean.Duplicates = "keep"
    min_user_events: int = Field(default=1, ge=1, le=2**31)  # with the next one: a k-core, to its fixed point
    min_item_events: int = Field(default=1, ge=0, le=2**31)  # 0: the catalogue also has all that the source describes
    values: bool = False  # whether the store keeps each event's value, such as a rating, for `turborec drift`
    bad_rows: float = Field(default=0.01, ge=0, le=1)  # the share of bad rows above which nothing is prepared
    engine: Literal["duckdb", "spark"] = "duckdb"  # what runs the SQL; changes no result
    memory_mb: int = Field(default=1000, ge=250)  # for the engine, which spills to disk beyond it; changes no result
    shard_mb: int | None = Field(default=None, ge=1)  # larger files of a new store are cut into shards; changes no result

    def rules(self) -> dict[str, Any]:
        """All that decides the result, as plain data."""
        told = self.model_dump(mode="json", exclude={"engine", "memory_mb", "shard_mb"})
        if not self.values:  # named only where they are kept, so that the keys of other stores stay what they were
            del told["values"]
        return told


def prepare(tables: RawTables, source: Mapping[str, Any], config: Prepare, split: Split, home: Path) -> Path:
    """The store of `tables` under `home`: made now, unless the same inputs were prepared there before.

    `source` describes the data on the card. The store's name is the hash of the files' contents, the way they are
    read, `config` and `split`. Of several processes that prepare the same store one works and the others wait.
    """
    require_sound(tables.features)
    files = _file_facts(tables)
    if tables.time == "auto":
        tables = replace(tables, time=time_format(tables.events))
    key = store_key(tables, files, config, split)
    folder = home / "stores" / key[:16]
    if not folder.is_dir():
        with _locked(folder):
            if not folder.is_dir():
                card = {"format": FORMAT, "key": key, "source": {**source, "files": files, "terms": tables.terms}}
                if tables.features:  # what is ranked does not depend on them: values with and without may stand in one table
                    bare = replace(tables, features={})
                    card["events_key"] = store_key(bare, files[: -_feature_files(tables)], config, split)
                _make(tables, config, split, folder, card)
    open_store(folder, verify=False)
    return folder


def store_key(tables: RawTables, files: list[dict[str, Any]], config: Prepare, split: Split) -> str:
    """The SHA-256 of all that decides what a store holds; not of names, places or memory."""
    facts = {
        "format": FORMAT,
        "files": [fact["sha256"] for fact in files],
        "time": tables.time if tables.time != "iso" else "iso, kept in milliseconds",
        "tables": [_description(table) for table in _parts(tables).values()],
        "prepare": config.rules(),
        "split": split.model_dump(mode="json"),
    }
    if tables.features:  # named only where there are any, so that the keys of other stores stay what they were
        facts["features"] = {name: [form_of(table), len(table.files)] for name, table in tables.features.items()}
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _description(table: RawTable) -> dict[str, Any]:
    layout = {"kind": type(table.layout).__name__.lower(), **asdict(table.layout)}
    described: dict[str, Any] = {"select": dict(table.select), "derive": dict(table.derive), "where": table.where}
    if table.constants:  # named only where there are any, so that the keys of other stores stay what they were
        described["constants"] = {name: list(texts) for name, texts in table.constants.items()}
    if table.lookups:
        described["lookups"] = {name: lookup.column for name, lookup in table.lookups.items()}
    return {"files": len(table.paths), "layout": layout, **described}


def _parts(tables: RawTables) -> dict[str, RawTable]:
    """The tables by name, each after those that it looks something up in: `events_item` before `events`."""
    parts: dict[str, RawTable] = {}
    for name, table in (("events", tables.events), ("items", tables.items), ("impressions", tables.impressions)):
        if table:
            parts |= {f"{name}_{column}": lookup.table for column, lookup in table.lookups.items()}
            parts[name] = table
    return parts


def _file_facts(tables: RawTables) -> list[dict[str, Any]]:
    parts = _parts(tables)
    if tables.impressions and tables.impressions.paths == tables.events.paths:  # which are told of already
        del parts["impressions"]
    files = [file for table in parts.values() for file in zip(table.paths, table.names, strict=True)]
    files += [(path, path.name) for _, table in sorted(tables.features.items()) for path in table.files]
    for path, _ in files:
        if not path.is_file():
            raise UserError(f"The file {path} does not exist: the source should have named a file of raw rows.")
    return [{"name": name, "bytes": path.stat().st_size, "sha256": sha256(path)} for path, name in files]


def _feature_files(tables: RawTables) -> int:
    """How many of the files, the last ones, are those of features."""
    return sum(len(table.files) for table in tables.features.values())


def _make(tables: RawTables, config: Prepare, split: Split, folder: Path, card: dict[str, Any]) -> None:
    """Build the store beside its place and move it there whole, or leave nothing."""
    building, work = (folder.with_name(f".{folder.name}.{name}") for name in ("building", "work"))
    try:
        for place in (building, work):
            shutil.rmtree(place, ignore_errors=True)  # of a process that was killed
            place.mkdir()
        with _explained(folder, config):
            card |= _build(tables, config, split, building, work)
            seal(building, card, config.shard_mb)
            building.rename(folder)
            sync(folder.parent)
    finally:
        for place in (building, work):
            shutil.rmtree(place, ignore_errors=True)


def _build(tables: RawTables, config: Prepare, split: Split, folder: Path, work: Path) -> dict[str, Any]:
    """Everything but the card, of which the facts are returned."""
    columns = columns_of(tables.events)
    _require_columns(columns, config, split, described=tables.items is not None)
    with closing(_engine(work, config)) as con:
        intakes = _ingest(con, tables, config.bad_rows, folder)
        dropped = _clean(con, columns, config, split)
        _require_events(con, intakes["events"], dropped)
        users, items = (number(con, f"SELECT count(*) FROM {name}") for name in ("users", "items"))
        shown = write_impressions(con, folder) if tables.impressions else {}
        if isinstance(split, ItemHoldout):
            clean.label_items(con, split.labels(items), config.values)
        events = write_events(con, folder, work / "labels.npy", TICKS[tables.time], config.values)
        write_ids(con, folder)
        if tables.items:
            names = [name for name in columns_of(tables.items) if name != "item"]
            write_attributes(con, names, folder / "items.parquet")
        earliest, latest = con.rows("SELECT min(time), max(time) FROM core")[0]
        _require_plausible(con, latest, tables)
        known = shown | (_values(con) if config.values else {})
    if tables.features:
        known["features"] = write_features(tables.features, Ids(folder / "item_ids"), folder)
    taking_part = write_cuts(folder, split, events)
    lengths = np.quantile(np.diff(events.offsets), QUANTILES, method="lower")
    counts = {"users": users, "items": items, "events": len(events.times)}
    return {
        "prepare": config.rules(),
        "split": split.model_dump(mode="json"),
        "columns": dict(tables.events.select),
        "tie_rule": _tie_rule(columns, split),
        "time_unit": None if earliest is None else "milliseconds" if TICKS[tables.time] == 1000 else "seconds",
        "times": None if earliest is None else [earliest, latest],
        "counts": {**counts, "dropped": dropped, "users_taking_part": taking_part},
        **known,
        "rows": {name: asdict(intake) for name, intake in intakes.items()},
        "history_lengths": dict(zip(map(str, QUANTILES), lengths.tolist(), strict=True)),
    }


def _values(con: Engine) -> dict[str, Any]:
    """What the card says of the values that are kept: of how many events they are known, the least and the greatest."""
    number, least, greatest = con.rows("SELECT count(value), min(value), max(value) FROM core")[0]
    if not number:
        raise UserError("No event that is left has a value, so there are none to keep: leave out data.prepare.values.")
    return {"values": {"known": number, "least": least, "greatest": greatest}}


def _require_plausible(con: Engine, latest: int | None, tables: RawTables) -> None:
    """Times in another unit than the stated one, all or some of them, would only show in the dates of a split: refused here."""
    limit = YEAR_2200 * TICKS[tables.time]
    if latest is None:
        return
    if latest >= limit:
        rows, told = _rows_where(con, tables, f"time >= {limit}")
        all_of_them = rows == number(con, "SELECT count(time) FROM staged_events WHERE _reason IS NULL")
        remedy = (
            MILLISECONDS
            if tables.time == "seconds" and all_of_them
            else "Bring all times to one unit, or correct those that are wrong."
        )
        raise UserError(f"The latest time is {latest:,} {tables.time}, which lies beyond the year 2200, as {told} do. {remedy}")
    if tables.time == "milliseconds" and latest >= YEAR_1990 * 1000:
        rows, told = _rows_where(con, tables, f"time >= {YEAR_1973} AND time < {YEAR_2200}")
        # Times that are counted from the beginning of a log would lie between, too.
        if rows and not _rows_where(con, tables, f"time >= {YEAR_2200} AND time < {YEAR_1990 * 1000}")[0]:
            raise UserError(
                f"As milliseconds {told} would be of January to March 1970, and all others of 1990 or later: they are in "
                "seconds. Bring all times to one unit."
            )


def _rows_where(con: Engine, tables: RawTables, condition: str) -> tuple[int, str]:
    """How many sound rows of events a condition holds for, and these in words with the place of the first."""
    sound = f"FROM staged_events WHERE _reason IS NULL AND {condition}"
    ((rows, position),) = con.rows(f"SELECT count(*), min(position) {sound}")
    if not rows:
        return 0, ""
    place, line = divmod(int(position), FILE_STEP)
    return int(rows), f"{rows:,} of the times (the first at {tables.events.names[place]}:{line})"


def _tie_rule(columns: list[str], split: Split) -> str:
    leading = next((name for name in ("order", "time") if name in columns), "position")
    return ("by label, then " if isinstance(split, Labelled | ItemHoldout) else "") + clean.TIE_RULES[leading]


def _engine(work: Path, config: Prepare) -> Engine:
    if config.engine == "duckdb":
        return duckdb_in(work, config.memory_mb)
    from turborec.data.spark import Spark

    return Spark(work, config.memory_mb)


def _ingest(con: Engine, tables: RawTables, bad_rows: float, folder: Path) -> dict[str, Intake]:
    parts = _parts(tables)
    checks = {name: LOOKUP_CHECKS for name in parts} | {"events": event_checks(tables.time)}
    if tables.items:
        checks["items"] = item_checks(tables.items)
    if tables.impressions:
        checks["impressions"] = impression_checks(tables.time)
    intakes = {name: ingest(con, f"staged_{name}", table, checks[name], bad_rows, name) for name, table in parts.items()}
    if any(intake.rejected for intake in intakes.values()):
        records = chain.from_iterable(bad_records(con, f"staged_{name}", table) for name, table in parts.items())
        write_quarantine(folder / "quarantine.tsv", records)
    return intakes


def _clean(con: Engine, columns: list[str], config: Prepare, split: Split) -> dict[str, int]:
    """Leave the events to keep in `core`; how many were dropped for which reason, one after the other."""
    tests = {}
    if config.kinds is not None:
        tests["other_kinds"] = f"kind IN ({', '.join(map(literal, config.kinds))})"
    if config.min_value is not None:
        tests["below_min_value"] = f"value >= CAST('{config.min_value!r}' AS DOUBLE)"
    conditions = ["_reason IS NULL", *tests.values()]
    with task("Cleaning events", 3, "steps") as advance:
        clean.number_ids(con, described=not config.min_item_events)
        advance(1)
        left = [
            number(con, f"SELECT count(*) FROM staged_events WHERE {' AND '.join(conditions[: 1 + applied])}")
            for applied in range(len(conditions))
        ]
        clean.locate(con, columns, isinstance(split, Labelled), conditions, config.values)
        advance(1)
        clean.drop_duplicates(con, config.duplicates, config.values)
        advance(1)
    left.append(number(con, "SELECT count(*) FROM events"))
    clean.keep_core(con, config.min_user_events, config.min_item_events, config.values)
    left.append(number(con, "SELECT count(*) FROM core"))
    reasons = [*tests, "duplicates", "outside_core"]
    return {reason: before - after for reason, (before, after) in zip(reasons, pairwise(left), strict=True)}


def _require_columns(columns: list[str], config: Prepare, split: Split, described: bool) -> None:
    if not config.min_item_events and not described:
        raise UserError("prepare.min_item_events=0 keeps every item that is described, and this source describes none.")
    needs = {
        "kind": config.kinds is not None and "prepare.kinds",
        "value": (config.min_value is not None and "prepare.min_value") or (config.values and "prepare.values"),
        "label": isinstance(split, Labelled) and "the split labelled",
        "time": isinstance(split, GlobalTime) and "the split global_time",
    }
    for column, reason in needs.items():
        if reason and column not in columns:
            raise UserError(f"{reason} needs a column {column!r}; the source selects {', '.join(columns)}.")


def _require_events(con: Engine, intake: Intake, dropped: dict[str, int]) -> None:
    items = number(con, "SELECT count(*) FROM items")
    if items > 1:
        return
    left = "Only one item is" if items else "No event is"
    reasons = {"bad": sum(intake.rejected.values()), "left out by the source": intake.left_out, **dropped}
    gone = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in reasons.items() if count)
    kinds = ""
    if dropped.get("other_kinds"):
        most = "SELECT kind FROM staged_events GROUP BY kind ORDER BY count(*) DESC, kind NULLS LAST LIMIT 10"
        rows = con.rows(most)
        kinds = f" The kinds there are: {', '.join(repr(kind or '') for (kind,) in rows)}."
    raise UserError(
        f"{left} left of {intake.rows:,} rows{f', of which went: {gone}' if gone else ''}.{kinds} There must be two items "
        f"at least: choose other filters or other data."
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the store's lock, which a process that dies gives up too, and remove it once the store is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f".{folder.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another process is preparing {folder}: waiting for it.", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
        # Only now: after a failure one process could hold the old file's lock and another that of a new one.
        lock.unlink(missing_ok=True)


@contextmanager
def _explained(folder: Path, config: Prepare) -> Iterator[None]:
    """Failures of the machine in words for the user; those of Spark's tell what happened in their text alone."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        if any(sign in what for sign in OUT_OF_MEMORY):
            raise UserError(
                f"Preparing needs more than the {config.memory_mb} MB of prepare.memory_mb, or more room than there is for "
                f"temporary files beside {folder}: {error}"
            ) from error
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in what:
            raise UserError(f"The disk of {folder} is full: free some space and prepare again. ({error})") from error
        raise
