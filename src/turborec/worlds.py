"""Stores as one log in time: a store by itself, or with what other stores have later, joined by raw ids.

Letters: U users, E events, V items of the first store's catalogue, M of all stores.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from turborec.data import attributes
from turborec.data.schema import UNKNOWN_TIME, moment
from turborec.data.store import Ids, Store
from turborec.drift import categories
from turborec.drift.counts import BLOCK, Log
from turborec.drift.periods import instant, span
from turborec.errors import UserError

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
Table = tuple[NDArray[Any], ...]
"""Columns: users, times, items and, where they are kept, values of events."""


@dataclass(frozen=True)
class World:
    """Events in the order of users and time, and what the first store, which models are trained on, knows of them."""

    log: Log  # items 1..M
    ticks: int
    begins: int  # the instant from which on it is looked at
    validates: int  # before it the first store's events are trained on, all of them
    catalogue: Int64  # [M + 1]: the id in the first store's catalogue, 0 where it has none
    trained_items: Bool  # [M + 1]: with an event in the training part
    trained_users: Bool  # [U]
    trained: Int64  # [U]: how many of a user's events, the first ones, are trained on
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Window:
    """A store, or its events from one instant on that are before another."""

    store: Store
    begin: int | None = None
    end: int | None = None
    file: Path | None = None  # of RecBole's, of which the store was made to look at it

    @property
    def called(self) -> str:
        """What the user knows it by."""
        return str(self.file or self.store.folder)


def instants(text: str, ticks: int) -> tuple[int, int]:
    """The instants of `FROM..TO`, dates of ISO 8601, of UTC where they name no zone; TO is not held any more."""
    found = []
    for part in text.split(".."):
        try:
            found.append(int(moment(part).timestamp()) * ticks)
        except ValueError:
            break
    if len(found) != 2 or found[0] >= found[1]:
        raise UserError(f"A window is STORE@FROM..TO with dates such as 2018-01-01..2018-07-01, FROM before TO; got @{text}.")
    return found[0], found[1]


def of_store(store: Store, category: str | None = None, file: Path | None = None, asked: bool = False) -> World:
    """A store that is split by time: what is looked at are the events of its test part.

    `category`: the attribute of items that tells their categories; None: the one that obviously does, if any. `file`: as in
    `Window`. `asked`: whether the command knows --current.
    """
    offsets, times, only = store.histories.offsets, store.histories.times, Window(store, file=file)
    _require_times(only)
    starts = []
    for column in (1, 0):
        cuts = store.cuts[:, column]
        after, before = cuts[cuts < offsets[1:]], cuts[cuts > offsets[:-1]] - 1
        if not len(after) or (len(before) and times[before].max() >= times[after].min()):
            split = store.card.get("split", {}).get("kind", "none")
            advice = "Split it by time: data.split='{kind: global_time, validation_from: …, test_from: …}'."
            if file is not None:
                split, advice = "none", f"Cut it: --reference {file}@FROM..TO --current {file}@FROM..TO."
            raise UserError(
                f"{only.called} is not split by time (its split is {split}), so nothing in it is the future of what was "
                f"trained on. {advice}{' Or name what came later with --current.' * asked}"
            )
        starts.append(_day(int(times[after].min()), int(times[before].max()) if len(before) else 0, store.ticks))
    begins, validates = starts
    every, trained = np.arange(store.num_items + 1), store.cuts[:, 0] - offsets[:-1]
    log = Log(offsets, store.histories.items, times, store.num_items, store.values)
    if lost := int((times == UNKNOWN_TIME).sum()):
        log = _sorted(
            [_events(only, every, np.arange(store.num_users), store.values is not None)], store.num_users, store.num_items
        )
        trained = _trained(store)
    log, remarks = _described(log, [(only, every)], category)
    if lost:
        remarks.append(f"{lost:,} events of {only.called} have no time, and are left out.")
    return World(
        log,
        store.ticks,
        begins,
        min(validates, begins),
        every,
        store.item_counts() > 0,
        store.cuts[:, 0] > offsets[:-1],
        trained,
        (*_future(log.times, store.ticks), *remarks),
    )


def joined(reference: Window, current: Sequence[Window], category: str | None = None) -> World:
    """The reference and what the others have later, joined by raw ids; `category` as in `of_store`."""
    first, ticks = reference.store, reference.store.ticks
    _require_times(reference)
    rated = all(window.store.values is not None for window in (reference, *current))
    numbered = [(reference, np.arange(first.num_items + 1))]
    tables = [_events(reference, numbered[0][1], np.arange(first.num_users), rated)]
    last = int(tables[0][1].max(initial=-(2**62)))
    known: dict[str, int] = {}
    people: dict[str, int] = {}
    remarks, seconds = [], []
    _require_apart(current)
    for window in current:
        _require_alike(reference, window)
        items = _matched(first.item_ids, window.store.item_ids, known, first.num_items, shift=1)
        numbered.append((window, items))
        if 2 * (shared := int((items[1:] <= first.num_items).sum())) < len(items) - 1:
            remarks.append(
                f"Of the {len(items) - 1:,} items of {window.called} the reference has {shared:,}: is it the same catalogue?"
            )
        users = _matched(first.user_ids, window.store.user_ids, people, first.num_users, shift=0)
        if not (items[1:] <= first.num_items).any():
            raise UserError(f"{reference.called} and {window.called} have no item in common: they are of different catalogues.")
        if not (users < first.num_users).any():
            remarks.append(f"{window.called} has none of the reference's users: what is new of them says nothing.")
        table = _events(window, items, users, rated)
        later = table[1] > last
        if not later.all():
            remarks.append(f"{int((~later).sum()):,} events of {window.called} are not after the reference, and are left out.")
        seconds.append(tuple(column[later] for column in table))
    if not sum(len(table[0]) for table in seconds):
        raise UserError(
            f"--current has nothing after {instant(last, ticks):%Y-%m-%d %H:%M}, where the reference ends. With --current the "
            f"reference is all of {reference.called} that is named, its test part too: leave out --current to look at the test "
            "part, or, without a run, end the reference earlier: --reference STORE@FROM..TO."
        )
    earliest = min(int(table[1].min()) for table in seconds if len(table[1]))
    total = first.num_items + len(known)
    log = _sorted([*tables, *seconds], first.num_users + len(people), total)
    log, told = _described(log, numbered, category)
    catalogue = np.arange(total + 1)
    catalogue[first.num_items + 1 :] = 0
    trained = np.concatenate([first.item_counts() > 0, np.zeros(len(known), bool)])
    starts, ends = first.histories.offsets[:-1], first.cuts[:, 0]
    begins = _day(earliest, last, ticks)
    unseen = first.histories.times[first.cuts[first.cuts[:, 0] < first.histories.offsets[1:], 0]]
    unseen = unseen[unseen != UNKNOWN_TIME]
    return World(
        log,
        ticks,
        begins,
        int(unseen.min()) if len(unseen) else begins,
        catalogue,
        trained,
        np.concatenate([ends > starts, np.zeros(len(people), bool)]),
        np.concatenate([_trained(first), np.zeros(len(people), np.int64)]),
        (*remarks, *_future(log.times, ticks), *told),
    )


def _trained(store: Store) -> Int64:
    """How many of each user's events whose time is known are of the training part: [U]."""
    there = store.within("train", 0, len(store.histories.items)) & (np.asarray(store.histories.times) != UNKNOWN_TIME)
    owner = np.repeat(np.arange(store.num_users), np.diff(store.histories.offsets))
    return np.bincount(owner[there], minlength=store.num_users)


def _require_apart(windows: Sequence[Window]) -> None:
    """Refuse windows of one store that have events in common, which would count twice."""
    for place, one in enumerate(windows):
        for other in windows[:place]:
            begin = max((w.begin for w in (one, other) if w.begin is not None), default=None)
            end = min((w.end for w in (one, other) if w.end is not None), default=None)
            if one.store.key == other.store.key and (begin is None or end is None or begin < end):
                raise UserError(
                    f"{one.called} is named twice with --current, for times that overlap: events would count twice. Name it "
                    "once, or windows that follow one another."
                )


def _sorted(tables: list[Table], users: int, items: int) -> Log:
    """The events of all tables in the order of users and times, with numbers of that many users and items."""
    owner, times, numbers, *values = (np.concatenate(columns) for columns in zip(*tables, strict=True))
    order = np.lexsort((times, owner))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=users))]).astype(np.int64)
    return Log(offsets, numbers[order], times[order], items, values[0][order] if values else None)


def _described(log: Log, windows: Sequence[tuple[Window, Int64]], asked: str | None) -> tuple[Log, list[str]]:
    """The log with the categories of its items, which have these numbers in the stores, and what there is to say of it.

    An item is of the categories that the first store which has it tells.
    """
    remarks = []
    if log.values is None:
        unrated = [window for window, _ in windows if window.store.values is None]
        why = "stores keep them where they are prepared with data.prepare.values=true."
        if all(window.file for window in unrated):
            why = f"{' and '.join(dict.fromkeys(window.called for window in unrated))} has no column rating."
        remarks.append(f"Ratings are not looked at: {why}")
    stores = [(window.store, numbers) for window, numbers in windows]
    column, why = categories.chosen([attributes.columns(store) for store, _ in stores], asked)
    if column is None:
        return log, [*remarks, why]
    texts: list[str | None] = [None] * (log.num_items + 1)
    for store, numbers in stores:
        for number, text in zip(numbers[1:].tolist(), attributes.texts(store, column), strict=True):
            texts[number] = texts[number] or text
    events = np.zeros(log.num_items + 1, np.int64)
    for begin in range(0, len(log.items), BLOCK):
        events += np.bincount(log.items[begin : begin + BLOCK], minlength=len(events))
    # Lists of RecBole's have blanks between their entries, and those of all others bars.
    blanks = all((store.card.get("source") or {}).get("kind") == "recbole" for store, _ in stores)
    blanks = blanks and not any(text and "|" in text for text in texts)
    found = categories.of_texts(column, texts[1:], " " if blanks else "|", events)
    lacking = np.diff(found.starts)[1:] == 0
    remarks.append(
        f"Categories are what the items' column {column} tells, with {'blanks' if blanks else 'bars'} between several: an "
        f"event counts once for each of its item's. {int(lacking.sum()):,} of {log.num_items:,} items have none."
    )
    return replace(log, categories=found), remarks


def _future(times: Int64, ticks: int) -> list[str]:
    """A remark on events that lie ahead of the clock, which are errors in it or in the times."""
    now = int(datetime.now(UTC).timestamp() * ticks)
    ahead = sum(int((times[begin : begin + BLOCK] > now).sum()) for begin in range(0, len(times), BLOCK))
    return [f"{ahead:,} events lie in the future: are their times right?"] * bool(ahead)


def shuffled(world: World, seed: int = 0) -> World:
    """The same events, ratings too, at times dealt anew: a world in which nothing changes but by chance.

    Each event has any day from the first to the last, and the time of day of any event: were the days of the log kept, users
    would have fewer events a day where the log has fewer.
    """
    log, day = world.log, 86_400 * world.ticks
    generator, times = np.random.default_rng(seed), np.asarray(log.times)
    dealt, known = np.full(len(times), UNKNOWN_TIME), times != UNKNOWN_TIME
    first, last = (bound // day for bound in span(times[times != UNKNOWN_TIME]))
    days = generator.integers(first, last + 1, int(known.sum()))
    dealt[known] = days * day + generator.permutation(times[known] % day)
    users = np.repeat(np.arange(len(log.offsets) - 1), np.diff(log.offsets))
    order = np.lexsort((dealt, users))
    values = None if log.values is None else np.asarray(log.values)[order]
    return replace(world, log=replace(log, items=np.asarray(log.items)[order], times=dealt[order], values=values))


def _day(at: int, before: int, ticks: int) -> int:
    """The beginning of the day, where nothing that comes before lies in it."""
    day = at - at % (86_400 * ticks)
    return day if before < day else at


def _require_times(window: Window) -> None:
    times = window.store.histories.times
    if not len(times) or int(times.max()) == UNKNOWN_TIME:
        raise UserError(f"The events of {window.called} have no times, without which nothing has a before and an after.")


def _require_alike(reference: Window, window: Window) -> None:
    """Refuse what cannot be compared: other rules of preparation, other units, another sample of people."""
    _require_times(window)
    first, other = reference.store, window.store
    if first.ticks != other.ticks:
        units = [{1: "seconds", 1000: "milliseconds"}[store.ticks] for store in (first, other)]
        raise UserError(f"{reference.called} has times in {units[0]}, {window.called} in {units[1]}: prepare both in one unit.")
    # Whether values are kept changes nothing else.
    rules = [{k: v for k, v in (store.card.get("prepare") or {}).items() if k != "values"} for store in (first, other)]
    if rules[0] != rules[1]:
        differing = sorted(name for name in {*rules[0], *rules[1]} if rules[0].get(name) != rules[1].get(name))
        raise UserError(
            f"{reference.called} and {window.called} were prepared by other rules ({', '.join(differing)}), whose effect would "
            "be taken for drift: prepare both by the same."
        )
    sources = [store.card.get("source") or {} for store in (first, other)]
    names = [source.get("name") for source in sources]
    if all(source.get("kind") == "movielens" for source in sources) and names[0] != names[1]:
        raise UserError(
            f"MovieLens {names[0]} and {names[1]} are samples of different people with numbers of their own, and neither is "
            "the past of the other. Cut one release by time: data.split='{kind: global_time, …}'."
        )


def _matched(first: Ids, other: Ids, known: dict[str, int], size: int, shift: int) -> Int64:
    """For each id of the other store its number among all: the first's, or one after those, kept in `known`."""
    raw = other.raw(range(len(other)))
    found = first.find(raw)
    numbers = [
        row + shift if row >= 0 else size + shift + known.setdefault(text, len(known))
        for text, row in zip(raw, found.tolist(), strict=True)
    ]
    return np.asarray([0] * shift + numbers, dtype=np.int64)


def _events(window: Window, items: Int64, users: Int64, rated: bool) -> Table:
    """User, time and item of each of the window's events whose time is known, in numbers of all; its value where `rated`."""
    histories = window.store.histories
    owner = np.repeat(np.arange(histories.num_users), np.diff(histories.offsets))
    times = np.asarray(histories.times)
    kept = times != UNKNOWN_TIME
    if window.begin is not None:
        kept &= times >= window.begin
    if window.end is not None:
        kept &= times < window.end
    if not kept.any():
        raise UserError(f"{window.called} has no event in the window that was named.")
    values = [np.asarray(window.store.values)[kept]] if rated else []
    return users[owner[kept]], times[kept], items[np.asarray(histories.items)[kept]], *values
