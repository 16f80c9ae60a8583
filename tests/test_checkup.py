"""Models and data looked at again: what has changed on a known day is found, dated and laid at the right door."""

import json
from dataclasses import replace

import numpy as np
import pytest

from stores import store_of
from turborec import recipes, run
from turborec.assembly import measure
from turborec.checkup import check, ranked_at
from turborec.errors import UserError
from turborec.stores import Places
from turborec.worlds import Window, instants, joined, of_store, plan

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
    assert not any(loss.low > 0 for loss in found.losses) and found.verdict != "drift"
    # Users of this world end with it, which is not what they did before.
    told = {s.cause for s, beyond in zip(found.data.statistics, found.data.beyond, strict=True) if beyond.any()}
    assert told <= {"activity"}


def test_another_taste_is_dated_and_laid_to_preference(checked):
    found = checked["taste"]
    assert found.verdict == "drift"
    names = found.plan.names
    late = [name for name in names if name >= "2020-08-3"]
    assert names[0] == "2020-08-03 to 2020-09-01" and len(late) == 1
    assert [loss.period for loss in found.losses if loss.low > 0] == late
    assert worst(found)[1] == "preference"
    told = {s.cause for s, beyond in zip(found.data.statistics, found.data.beyond, strict=True) if beyond.any()}
    assert "preference" in told and not told & {"items", "users"}


def test_new_items_are_dated_and_laid_to_new_items(checked):
    found = checked["cold"]
    assert found.verdict == "drift" and worst(found)[1] == "new items"
    assert [loss.period for loss in found.losses if loss.low > 0] == ["2020-09-01 to 2020-10-01"]
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
