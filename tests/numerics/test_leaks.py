"""No batch of training shows or asks for an event that validation or test hold back, whatever the split."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from turborec.data.loader import Batches, TrainingBatches, evaluation_batches
from turborec.data.prepare import Prepare, prepare
from turborec.data.schema import RawTable, RawTables, Text
from turborec.data.split import GlobalTime, ItemHoldout, Labelled, LeaveOneOut, Ratio, Split, UserHoldout
from turborec.data.store import Store, open_store

SPLITS = (LeaveOneOut(), Ratio(validation=0.2, test=0.2), GlobalTime(), Labelled(), UserHoldout(validation=0.2, test=0.2))
ITEMS_OUT = ItemHoldout(validation=0.2, test=0.2)

Event = tuple[str, str, int]


@dataclass(frozen=True)
class Case:
    """Raw rows of a user, an item, a time nobody else has, and a label that never falls with time."""

    rows: list[tuple[str, str, int, str]]

    def write(self, folder: Path) -> RawTables:
        path = folder / "events.csv"
        lines = [",".join(map(str, row)) for row in self.rows]
        path.write_text("\n".join(["user,item,time,label", *lines]) + "\n")
        return RawTables(RawTable((path,), Text(",", header=True), {n: n for n in ("user", "item", "time", "label")}))


def case_of(seed: int) -> Case:
    """Random histories whose rows are in no order."""
    generator = np.random.default_rng(seed)
    users, length = int(generator.integers(8, 12)), int(generator.integers(5, 12))
    times = 1000 + np.sort(generator.permutation(users * length).reshape(users, length), axis=1)
    labels = ["train"] * (length - 2) + ["valid", "test"]
    rows = [
        (f"u{u}", f"i{generator.integers(10)}", int(times[u, place]), labels[place])
        for u in range(users)
        for place in range(length)
    ]
    return Case([rows[n] for n in generator.permutation(len(rows))])


def shown(store: Store, batches: Batches) -> set[Event]:
    """Every event that two epochs of training show or ask for, by its user and time."""
    training = TrainingBatches(store, batches, seed=3)
    events = set()
    for number in range(2):
        epoch = training.epoch(number)
        for step in range(len(epoch)):
            batch = epoch.batch(step)
            for row, user in enumerate(store.user_ids.raw(batch.users.tolist())):
                history = store.histories
                span = slice(*history.offsets[batch.users[row] : batch.users[row] + 2].tolist())
                clock = dict(zip(history.times[span].tolist(), history.items[span].tolist(), strict=True))
                length = int(batch.lengths[row])
                times = batch.times[row, :length].tolist()
                assert [clock[t] for t in times] == batch.items[row, :length].tolist()
                following = [min(t for t in clock if t > time) for time in times if max(clock) > time]
                asked = [t for t, item in zip(following, batch.targets[row, :length].tolist(), strict=False) if item]
                wanted = [item for item in batch.targets[row, :length].tolist() if item]
                assert [clock[t] for t in asked] == wanted
                names = store.item_ids.raw([clock[t] - 1 for t in (*times, *asked)])
                events |= {(user, name, t) for name, t in zip(names, (*times, *asked), strict=True)}
    return events


def held_back(case: Case, split: Split, store: Store) -> set[Event]:
    """The events that training must not know, from the raw rows alone."""
    by_user: dict[str, list[Event]] = {}
    for user, item, time, _ in sorted(case.rows, key=lambda row: row[2]):
        by_user.setdefault(user, []).append((user, item, time))
    if isinstance(split, LeaveOneOut):
        return {event for events in by_user.values() for event in events[-2:]}
    if isinstance(split, Ratio):
        return {event for events in by_user.values() for event in events[-2 * max(1, len(events) // 5) :]}
    if isinstance(split, Labelled):
        return {(user, item, time) for user, item, time, label in case.rows if label != "train"}
    if isinstance(split, GlobalTime):
        times = sorted(time for _, _, time, _ in case.rows)
        first = next(t for t in range(times[0], times[-1] + 2) if sum(time < t for time in times) >= 0.8 * len(times))
        return {(user, item, time) for user, item, time, _ in case.rows if time >= first}
    evaluated = store.user_ids.raw([*store.users_of("validation"), *store.users_of("test")])
    return {event for user in evaluated for event in by_user[user]}


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.kind)
@pytest.mark.parametrize(("length", "overlap", "seams"), [(2, 0, "fixed"), (4, 1, "long"), (6, 2, "all"), (20, 0, "all")])
def test_training_knows_nothing_of_what_is_held_back(split, length, overlap, seams, tmp_path):
    case = case_of(seed=length)
    store = open_store(prepare(case.write(tmp_path), {}, Prepare(), split, tmp_path))
    known = shown(store, Batches(max_length=length, tokens=3 * length, overlap=overlap, seams=seams))
    secret = held_back(case, split, store)
    assert known and secret and not known & secret


@pytest.mark.parametrize("seed", range(3))
def test_training_never_meets_a_cold_item(seed, tmp_path):
    store = open_store(prepare(case_of(seed).write(tmp_path), {}, Prepare(), ITEMS_OUT, tmp_path))
    known = trained_items(store)
    asked = store.item_ids.raw(np.unique(np.concatenate([targets(store, part) for part in ("validation", "test")])) - 1)
    assert known and not known & set(asked)


def trained_items(store: Store) -> set[str]:
    """Every item that an epoch of training shows or asks for."""
    training = TrainingBatches(store, Batches(max_length=6, tokens=24), seed=1).epoch(0)
    batches = [training.batch(step) for step in range(len(training))]
    ids = {int(i) for batch in batches for i in (*batch.items.flatten(), *batch.targets.flatten()) if i}
    return set(store.item_ids.raw([i - 1 for i in ids]))


def targets(store: Store, part: str) -> np.ndarray:
    starts, ends = store.span(part, store.users_of(part))
    return np.concatenate([store.histories.items[s:e] for s, e in zip(starts, ends, strict=True)])


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("seed", range(3))
def test_a_history_at_evaluation_ends_before_its_part_in_time(part, seed, tmp_path):
    split = GlobalTime(validation_from=0.5, test_from=0.75)
    store = open_store(prepare(case_of(seed).write(tmp_path), {}, Prepare(), split, tmp_path))
    starts = dict(zip(store.users_of(part).tolist(), store.span(part, store.users_of(part))[0].tolist(), strict=True))
    for batch in evaluation_batches(store, part, Batches(max_length=5, tokens=20)):
        for row, user in enumerate(batch.users.tolist()):
            assert batch.times[row, : batch.lengths[row]].max() < store.histories.times[starts[user]]
