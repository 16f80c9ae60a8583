"""Models and data looked at again: what has changed on a known day is found, dated and laid at the right door."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stores import store_of
from turborec import recipes, run
from turborec.assembly import measure
from turborec.checkup import check, ranked_at
from turborec.cutting import plan
from turborec.data.store import Ids
from turborec.errors import UserError
from turborec.report.drift_page import checkup_page
from turborec.stores import Places
from turborec.worlds import Window, instants, joined, of_store, shuffled

WEEK = 7 * 86_400
SOURCE = {"kind": "simulated", "users": 1200, "items": 150, "mean_length": 30.0, "clusters": 6, "weeks": 40, "sequential": 0.7}
TREE = {
    "data": {
        "source": SOURCE,
        "prepare": {"min_user_events": 1, "min_item_events": 1},
        "split": {"kind": "global_time", "validation_from": "2020-07-06", "test_from": "2020-08-03"},
    },
    "batches": {"max_length": 30, "tokens": 3000},
    "model": {"kind": "sasrec", "width": 32, "hidden": 64, "dropout": 0.1, "layers": 1},
    "train": {"epochs": 6, "optimizer": {"lr": 0.005}},
    "anchors": False,
}
KINDS = {"still": {"cold": 0.0}, "taste": {"cold": 0.0, "drift": "2020-08-31"}, "cold": {"cold": 0.2, "cold_from": 0.85}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on each kind of world."""
    place, found = tmp_path_factory.mktemp("checkup"), {}
    for kind, changes in KINDS.items():
        tree = {**TREE, "data": {**TREE["data"], "source": {**SOURCE, **changes}}}
        found[kind], _ = run.train(recipes.from_tree(tree, "the test"), place / kind, Places(home=place / "home"))
    return found


@pytest.fixture(scope="module")
def checked(trained):
    found = {}
    for kind, one in trained.items():
        world = of_store(one.store)
        found[kind] = check(world, plan(world, "month"), one, sampled=1200, resamples=100)
    return found


def worst(found):
    """The period that has lost most, and the cause of most of it."""
    loss = max(found.losses, key=lambda one: one.value)
    return loss, max(loss.causes, key=lambda name: loss.causes[name][0])


def test_a_world_that_stays_as_it_is(checked):
    found = checked["still"]
    assert not any(loss.shown for loss in found.losses) and found.verdict != "drift"
    # Users of this world end with it, which is not what they did before.
    told = {s.cause for s, beyond in zip(found.data.statistics, found.data.beyond, strict=True) if beyond.any()}
    assert told <= {"activity"}


def test_another_taste_is_dated_and_laid_to_preference(checked):
    found = checked["taste"]
    assert found.verdict == "drift"
    names = found.plan.names
    late = [name for name in names if name >= "2020-08-3"]
    assert names[0] == "2020-08-03 to 2020-09-01" and len(late) == 1
    assert [loss.period for loss in found.losses if loss.shown] == late
    assert worst(found)[1] == "preference"
    told = {s.cause for s, beyond in zip(found.data.statistics, found.data.beyond, strict=True) if beyond.any()}
    assert "preference" in told and not told & {"items", "users"}


def test_new_items_are_dated_and_laid_to_new_items(checked):
    found = checked["cold"]
    assert found.verdict == "drift" and worst(found)[1] == "new items"
    assert [loss.period for loss in found.losses if loss.shown] == ["2020-09-01 to 2020-10-01"]
    new = next(b for s, b in zip(found.data.statistics, found.data.beyond, strict=True) if s.name == "new items")
    assert new.tolist() == [False, True]


def test_causes_add_up_to_the_loss(checked):
    for found in checked.values():
        for one, loss in zip(found.ranked[1:], found.losses, strict=True):
            assert sum(cause[0] for cause in loss.causes.values()) == pytest.approx(loss.value, abs=1e-9)
            assert loss.value == pytest.approx(found.ranked[0].value - one.value, abs=1e-9)
        json.dumps(found.to_json())


def test_sampledranked_at_are_those_of_the_evaluator(trained):
    """Where every user has one event in the part, they are sampled all, and ranked as the evaluator ranks them."""
    one = trained["still"]
    world = of_store(one.store)
    begin, end = one.store.cuts[:, 0], one.store.cuts[:, 1]
    single = np.flatnonzero((end - begin == 1) & (begin > world.log.offsets[:-1]))
    values = ranked_at(world, one, "before", begin[single])
    measured = measure(one, "validation")
    place = np.searchsorted(measured.targets.users, single)
    assert np.array_equal(measured.targets.users[place], single) and len(single) > 50
    history = one.recipe.evaluation.history
    np.testing.assert_allclose(values.targets.values, measured.per_user[history]["ndcg@10"][place], atol=1e-6)


def test_what_the_model_does_not_know_ranks_nowhere(trained):
    """A later store with items of its own: they are targets that are always missed."""
    one = trained["still"]
    world = of_store(one.store)
    unknown = replace(world, catalogue=np.where(np.arange(len(world.catalogue)) > 75, 0, world.catalogue))
    full = check(world, plan(world, "month"), one, sampled=300, resamples=20)
    less = check(unknown, plan(world, "month"), one, sampled=300, resamples=20)
    assert less.ranked[1].value < full.ranked[1].value


# --- worlds ---


def timed(folder, histories, times, **card):
    """A store with times, and what its card says otherwise."""
    store = store_of(folder, histories, times=times)
    return replace(store, card={**store.card, **card})


def test_stores_are_joined_by_raw_ids(tmp_path):
    first = timed(tmp_path / "a", [[1, 2, 3], [2, 1]], [[10, 20, 30], [15, 25]])
    second = timed(tmp_path / "b", [[2, 3], [1], [3, 4]], [[30, 40], [50], [41, 42]])
    world = joined(Window(first), [Window(second)])
    # store_of calls user u of every store the same; so users 0 and 1 go on, and user 2 is new, as is item 4.
    assert world.log.offsets.tolist() == [0, 4, 7, 9]
    assert world.log.items.tolist() == [1, 2, 3, 3, 2, 1, 1, 3, 4]
    assert world.log.times.tolist() == [10, 20, 30, 40, 15, 25, 50, 41, 42]
    assert world.catalogue.tolist() == [0, 1, 2, 3, 0] and world.begins == 40
    assert "1 events" in world.remarks[0]


def test_windows_of_one_store(tmp_path):
    store = timed(tmp_path / "a", [[1, 2, 3, 1]], [[0, 86_400, 2 * 86_400, 3 * 86_400]])
    early, late = instants("1970-01-01..1970-01-03", 1), instants("1970-01-03..1970-01-04", 1)
    world = joined(Window(store, *early), [Window(store, *late)])
    assert world.log.times.tolist() == [0, 86_400, 2 * 86_400]
    for wrong in ("1970", "1970-01-03..1970-01-02", "x..y"):
        with pytest.raises(UserError, match="A window is"):
            instants(wrong, 1)


DAY = 86_400


def with_items(store, **columns):
    """The store with these attributes of its items."""
    items = store.item_ids.raw(range(store.num_items))
    pq.write_table(pa.table({"item": items, **columns}), store.folder / "items.parquet")
    return store


def with_values(store, values):
    """The store with these ratings."""
    np.save(store.folder / "values.npy", np.asarray(values, np.float32))
    return store


def test_ratings_and_categories_go_with_their_events(tmp_path):
    first = timed(tmp_path / "a", [[1, 2, 3], [2, 1]], [[10, 20, 30], [15, 25]])
    second = timed(tmp_path / "b", [[2, 3], [1], [3, 4]], [[31, 40], [50], [41, 42]])
    with_items(with_values(first, [1, 2, 3, 4, 5]), genres=["x", "x|y", None])
    with_items(with_values(second, [6, 7, 8, 9, np.nan]), title=list("abcd"), genres=["z", "z", "y", "z"])
    world = joined(Window(first), [Window(second)])
    assert world.log.items.tolist() == [1, 2, 3, 2, 3, 2, 1, 1, 3, 4]
    assert world.log.values.tolist()[:-1] == [1, 2, 3, 6, 7, 4, 5, 8, 9] and np.isnan(world.log.values[-1])
    found = world.log.categories
    named = [[found.names[c] for c in found.codes[slice(*found.starts[i : i + 2])]] for i in range(1, 5)]
    assert [sorted(one) for one in named] == [["x"], ["x", "y"], ["y"], ["z"]]  # item 3 is of what the later store tells
    assert any("column genres" in one and "0 of 4 items have none" in one for one in world.remarks)

    mixed = shuffled(world, 1)
    assert sorted(mixed.log.times % DAY) == sorted(world.log.times % DAY)
    pairs = [sorted(zip(w.log.items.tolist(), np.nan_to_num(w.log.values).tolist(), strict=True)) for w in (world, mixed)]
    assert pairs[0] == pairs[1]

    with pytest.raises(UserError, match=r"no column 'genre'.*they have genres"):
        joined(Window(first), [Window(second)], "genre")
    (tmp_path / "b" / "values.npy").unlink()
    unrated = joined(Window(first), [Window(replace(second, card=dict(second.card)))])
    assert unrated.log.values is None and any("data.prepare.values=true" in one for one in unrated.remarks)


def test_what_was_found_says_how_ratings_and_genres_have_changed(tmp_path):
    generator = np.random.default_rng(0)
    histories = [generator.integers(1, 40, 60).tolist() for _ in range(80)]
    times = [np.sort(generator.integers(0, 60 * DAY, 60)).tolist() for _ in range(80)]
    flat = np.concatenate(times)
    values = generator.integers(1, 6, len(flat)) * 1.0
    values[flat >= 50 * DAY] = 10
    values[0] = np.nan
    cuts = [tuple(np.searchsorted(row, [40 * DAY, 50 * DAY])) for row in times]
    store = timed(tmp_path / "a", histories, times)
    store = replace(store, cuts=np.asarray(cuts) + store.histories.offsets[:-1, None])
    with_items(with_values(store, values), genres=[f"g{n % 3}" for n in range(store.num_items)])
    world = of_store(store)
    found = check(world, plan(world, 1), resamples=50).to_json()
    told = {one["statistic"]: one["moved"] for one in found["data"]}
    assert told["ratings"] == told["rating levels"] == [True] and told["categories"] == [False]
    assert found["shares"]["ratings"]["names"] == ["1", "2", "3", "4", "5", "above 5"]
    assert found["shares"]["ratings"]["periods"] == [[0, 0, 0, 0, 0, 1]]
    assert sum(found["shares"]["categories"]["before"]) == pytest.approx(1)
    page = checkup_page(check(world, plan(world, 1), resamples=50))
    assert "Shares of ratings" in page and "above 5" in page and "g2" in page


def test_events_ahead_of_the_clock_are_counted(tmp_path):
    late = int(datetime(2190, 1, 1, tzinfo=UTC).timestamp())
    store = timed(tmp_path / "a", [[1, 2, 3], [1, 2, 3]], [[10, 20, late], [10, 20, late + 5]])
    assert "2 events lie in the future" in of_store(store).remarks[0]
    assert not any("future" in one for one in of_store(timed(tmp_path / "b", [[1, 2, 3]] * 2, [[10, 20, 30]] * 2)).remarks)


def test_other_people_and_few_items_in_common_are_stated(tmp_path):
    first = timed(tmp_path / "a", [[1, 2, 3]], [[10, 20, 30]])
    second = timed(tmp_path / "b", [[5], [1, 5, 6, 7, 8, 4]], [[5], [40, 50, 60, 70, 80, 90]])
    remarks = joined(Window(first), [Window(second, 35, 100)]).remarks
    assert any("Of the 8 items" in one and "the reference has 3" in one for one in remarks)
    assert not any("none of the reference's users" in one for one in remarks)
    Ids.write(tmp_path / "a" / "user_ids", [b"somebody else"])
    remarks = joined(Window(replace(first)), [Window(second, 35, 100)]).remarks
    assert any("none of the reference's users" in one for one in remarks)


def test_times_that_are_dealt_anew_leave_nothing_of_their_days_and_hours(tmp_path):
    """A log whose last day ends in the morning, and is all the quieter for it."""
    generator = np.random.default_rng(0)
    hours = np.concatenate([day + generator.random(400) for day in range(29)] + [29 + generator.random(60) / 6])
    owner = generator.integers(0, 40, len(hours))
    times = [np.sort((hours[owner == user] * DAY).astype(int)).tolist() for user in range(40)]
    store = timed(tmp_path / "a", [generator.integers(1, 30, len(row)).tolist() for row in times], times)
    cuts = [np.searchsorted(row, [25 * DAY, 26 * DAY]) for row in times]
    store = replace(store, cuts=np.asarray(cuts) + store.histories.offsets[:-1, None])
    world = of_store(store)
    assert "Not whole, and left out: 1970-01-30 to 1970-01-31 (60 events)" in plan(world, "day").remarks[0]
    dealt = shuffled(world)
    assert np.array_equal(np.sort(dealt.log.times % DAY), np.sort(world.log.times % DAY))
    assert np.bincount(dealt.log.times // DAY, minlength=30)[-1] > 200
    assert all((np.diff(row) >= 0).all() for row in np.split(dealt.log.times, dealt.log.offsets[1:-1]))
    found = check(dealt, plan(dealt, "day"), resamples=60).data
    assert found.values.shape[1] == 4 and not found.beyond.any()


def test_a_period_that_is_cut_short_is_named_and_left_out_at_either_end(tmp_path):
    """From Thursday the 26th of February to Tuesday the 24th of March: three weeks are whole."""
    times = [[day * DAY + user for day in range(83)] for user in range(40)]
    store = timed(tmp_path / "a", [[1, 2, 3, 4] * 20 + [1] * 3] * 40, times)
    store = replace(store, cuts=np.tile([49, 56], (40, 1)) + store.histories.offsets[:-1, None])
    chosen = plan(of_store(store), "week")
    assert chosen.names == ["1970-03-02 to 1970-03-09", "1970-03-09 to 1970-03-16", "1970-03-16 to 1970-03-23"]
    first, last = "1970-02-23 to 1970-03-02 (160 events)", "1970-03-23 to 1970-03-30 (80 events)"
    assert chosen.remarks[0] == f"Not whole, and left out: {first}, {last}; what is looked at begins with 1970-02-26."
    whole = plan(of_store(store), 4)
    assert whole.remarks == () and int(whole.events[whole.current].sum()) == 27 * 40


def test_periods_with_too_few_events_are_named_and_left_out(tmp_path):
    times = [[day * DAY for day in range(40)] for _ in range(60)]
    times[0].append(40 * DAY)
    store = timed(tmp_path / "a", [[1, 2, 3, 4] * 10 + [1] * (len(row) - 40) for row in times], times)
    store = replace(store, cuts=np.tile([30, 36], (60, 1)) + store.histories.offsets[:-1, None])
    chosen = plan(of_store(store), "day")
    assert len(chosen.current) == 4 and "1970-02-10 to 1970-02-11: fewer events than 5%" in chosen.remarks[0]


def test_periods_in_which_nothing_happened_are_named(tmp_path):
    days = [*range(0, 40), *range(44, 60)]
    times = [[day * DAY for day in days] for _ in range(4)]
    cuts = [(30, 36)] * 4
    store = timed(tmp_path / "a", [[1, 2] * (len(days) // 2)] * 4, times)
    store = replace(store, cuts=np.asarray(cuts) + store.histories.offsets[:-1, None])
    chosen = plan(of_store(store), "day")
    assert any("Nothing happened in 1970-02-10 to 1970-02-11, 1970-02-11" in one for one in chosen.remarks)
    assert len(chosen.current) == len(days) - 36


def test_what_cannot_be_held_against_each_other_is_refused(tmp_path):
    first = timed(
        tmp_path / "a", [[1, 2, 3]], [[10, 20, 30]], prepare={"min_user_events": 1}, source={"kind": "movielens", "name": "20m"}
    )
    later = timed(
        tmp_path / "b", [[1, 2, 3]], [[40, 50, 60]], prepare={"min_user_events": 5}, source={"kind": "movielens", "name": "32m"}
    )
    with pytest.raises(UserError, match="min_user_events"):
        joined(Window(first), [Window(later)])
    later = replace(later, card={**later.card, "prepare": first.card["prepare"]})
    with pytest.raises(UserError, match="samples of different people"):
        joined(Window(first), [Window(later)])
    later = replace(later, card={**later.card, "source": first.card["source"], "time_unit": "milliseconds"})
    with pytest.raises(UserError, match="milliseconds"):
        joined(Window(first), [Window(later)])
    undated = store_of(tmp_path / "c", [[1, 2, 3]])
    for asked in (lambda: joined(Window(undated), [Window(undated)]), lambda: of_store(undated)):
        with pytest.raises(UserError, match="have no times"):
            asked()
    before = timed(tmp_path / "d", [[1, 2]], [[1, 2]])
    with pytest.raises(UserError, match="nothing after"):
        joined(Window(timed(tmp_path / "e", [[1, 2]], [[5, 9]])), [Window(before)])
    with pytest.raises(UserError, match="no event in the window"):
        joined(Window(before, 100, 200), [Window(before)])


def test_a_split_that_is_not_by_time_has_no_future(tmp_path):
    with pytest.raises(UserError, match="not split by time"):
        of_store(timed(tmp_path / "a", [[1, 2, 3], [1, 2, 3]], [[10, 20, 30], [40, 50, 60]]))
