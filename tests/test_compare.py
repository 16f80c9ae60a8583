"""Differences, intervals and p values against plain arithmetic; slices hold the users they should."""

import json
from itertools import pairwise

import numpy as np
import pytest

from results import ITEMS, USERS, run_of, store_for_results
from turborec import compare as comparing
from turborec.compare import COLD, Terms, compare, slices_of
from turborec.contestants import read_all
from turborec.errors import UserError


@pytest.fixture(autouse=True)
def small_slices(monkeypatch):
    """The users of these tests are few."""
    monkeypatch.setattr("turborec.compare.FEWEST_USERS", 10)


QUICK = Terms(resamples=500)


@pytest.fixture
def store(tmp_path):
    return store_for_results(tmp_path / "store")


@pytest.fixture
def runs(tmp_path, store):
    """A weak and a strong run."""
    weak, strong = run_of(tmp_path / "weak", store, 0.1, seed=1), run_of(tmp_path / "strong", store, 0.6, seed=2, width=32)
    return [str(weak), str(strong)]


def test_differences_are_paired_and_agree_with_a_loop(runs):
    found = compare(runs, Terms(metrics=("ndcg@10",), resamples=400, seed=3))
    weak, strong = (one.values["masked"]["ndcg@10"] for one in read_all(runs, "test"))
    drawn = np.random.default_rng(3).integers(0, USERS, (400, USERS))
    means = np.sort([(strong - weak)[rows].mean() for rows in drawn])
    (one,) = found.differences
    assert one.difference == pytest.approx((strong - weak).mean()) == pytest.approx(one.value - one.baseline)
    assert (one.low, one.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert one.p == pytest.approx(min(1, 2 * (1 + min((means <= 0).sum(), (means >= 0).sum())) / 401))
    assert one.corrected == one.p and one.verdict == "better"


def test_the_first_is_the_baseline_and_the_other_way_round_is_the_opposite(runs):
    there, back = (compare(order, Terms(metrics=("mrr",), resamples=300)).differences[0] for order in (runs, runs[::-1]))
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
    assert (there.verdict, back.verdict) == ("better", "worse")


def test_p_values_are_corrected_for_all_contestants_and_metrics(runs):
    found = compare([*runs, f"{runs[0]}/popularity"], QUICK)
    assert len(found.differences) == 2 * 3
    p = np.sort([one.p for one in found.differences])
    stepped = np.minimum(1, np.maximum.accumulate(p * np.arange(6, 0, -1)))
    assert np.sort([one.corrected for one in found.differences]) == pytest.approx(stepped)
    assert any("corrected for the 6 comparisons" in remark for remark in found.remarks)
    slices = [one for piece in found.slices for one in piece.differences]
    assert max(one.corrected for one in slices) <= 1 and all(one.corrected >= one.p for one in slices)


def test_a_contestant_against_its_like_shows_nothing(tmp_path, store):
    same = [run_of(tmp_path / name, store, 0.3, seed=1, width=width) for name, width in (("x", 16), ("y", 32))]
    found = compare([*map(str, same)], QUICK)
    assert {(one.difference, one.low, one.high, one.p, one.verdict) for one in found.differences} == {(0, 0, 0, 1, "none")}


def test_slices_by_history_part_the_users_at_their_quartiles(runs, store):
    one = read_all(runs[:1], "test")[0]
    groups = [(name, rows) for topic, name, rows in slices_of(one)[0] if topic == "events of the history"]
    comparing_all = np.concatenate([rows for _, rows in _quartiles(one.events)])
    assert sorted(comparing_all) == list(range(USERS))
    shown = {name: sorted(rows) for name, rows in groups}
    expected = {name: sorted(rows) for name, rows in _quartiles(one.events) if len(rows) >= comparing.FEWEST_USERS}
    assert shown == expected


def _quartiles(events):
    """The groups by a plain definition: below or at each quartile, counted in whole users."""
    ordered = sorted(events)
    edges = sorted({ordered[-(-len(ordered) * q // 4) - 1] for q in (1, 2, 3)})
    group = np.asarray([sum(value > edge for edge in edges) for value in events])
    for number in sorted(set(group)):
        rows = np.flatnonzero(group == number)
        low, high = min(events[rows]), max(events[rows])
        yield (f"{low} to {high}" if low < high else f"{low}"), rows


def test_slices_by_popularity_follow_the_training_events_and_know_cold_items(runs, store, monkeypatch):
    monkeypatch.setattr(comparing, "FEWEST_USERS", 1)
    one = read_all(runs[:1], "test")[0]
    found, remarks = slices_of(one)
    counts = np.bincount(store.training().items, minlength=ITEMS + 1)
    of_target = np.asarray([counts[int(target.removeprefix("item-"))] for target in one.targets])
    by_name = {name: rows for topic, name, rows in found if topic == "training events of the target"}
    np.testing.assert_array_equal(by_name.pop(COLD), np.flatnonzero(of_target == 0))
    assert sorted(np.concatenate(list(by_name.values()))) == np.flatnonzero(of_target > 0).tolist()
    spans = [(of_target[rows].min(), of_target[rows].max()) for rows in by_name.values()]
    assert len(spans) == 3 and all(a[1] < b[0] for a, b in pairwise(spans))
    assert list(by_name) == [f"{low} to {high}" if low < high else f"{low}" for low, high in spans]
    assert remarks == []


def test_slice_values_are_those_of_its_users(runs):
    found = compare(runs, QUICK)
    baseline = found.baseline.values["masked"]["ndcg@10"]
    (cold,) = (piece for piece in found.slices if piece.name == COLD)
    rows = next(rows for _, name, rows in slices_of(found.baseline)[0] if name == COLD)
    assert cold.users == len(rows) and cold.differences[0].baseline == pytest.approx(baseline[rows].mean())


def test_without_the_store_slices_by_popularity_are_left_out_and_it_says_so(runs, store):
    (store.folder / "card.json").unlink()
    found = compare(runs, QUICK)
    assert not any(piece.topic.startswith("training events") for piece in found.slices)
    assert any("left out, because the store is not at hand" in remark for remark in found.remarks)


def test_another_store_is_not_taken_for_it(runs, tmp_path):
    other = store_for_results(tmp_path / "other", seed=1)
    card = json.loads((other.folder / "card.json").read_text())
    (other.folder / "card.json").write_text(json.dumps(card | {"key": "another"}))
    found = compare(runs, Terms(resamples=100, store=other.folder))
    assert any("holds other data than the results are about" in remark for remark in found.remarks)


def test_small_slices_are_left_out_and_named(runs, monkeypatch):
    monkeypatch.setattr(comparing, "FEWEST_USERS", USERS)
    found = compare(runs, QUICK)
    assert found.slices == [] and any(f"fewer than {USERS} users are left out" in remark for remark in found.remarks)


def test_the_answer_is_plain_json(runs):
    found = compare(runs, QUICK).to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["baseline"] == "weak" and found["users"] == USERS and found["protocol"]["history"] == "masked"


def test_history_and_metrics_can_be_chosen(runs):
    found = compare(runs, Terms(metrics=("hr@5",), history="kept", resamples=50))
    weak = read_all(runs, "test")[0]
    assert [one.metric for one in found.differences] == ["hr@5"] and found.history == "kept"
    assert found.differences[0].baseline == pytest.approx(weak.values["kept"]["hr@5"].mean())


def test_mistakes_are_named(runs):
    with pytest.raises(UserError, match="at least two contestants"):
        compare(runs[:1], QUICK)
    with pytest.raises(UserError, match=r"No value of 'ndgc@10'.*did you mean 'ndcg@10'"):
        compare(runs, Terms(metrics=("ndgc@10",)))


def test_seeds_are_told_each_by_itself(tmp_path, store):
    seeds = [run_of(tmp_path / f"s{seed}", store, seed=seed) for seed in (1, 2)]
    other = run_of(tmp_path / "other", store, width=32)
    found = compare([str(other), *map(str, seeds)], QUICK)
    merged = found.to_json()["contestants"][1]
    assert [(run["folder"], run["seed"]) for run in merged["runs"]] == [(str(seeds[0]), 1), (str(seeds[1]), 2)]
    alone = [run["values"]["ndcg@10"] for run in merged["runs"]]
    assert merged["values"]["ndcg@10"] == pytest.approx(np.mean(alone))
    told = next(remark for remark in found.remarks if remark.startswith("The seeds of s1 (2 seeds)"))
    assert f"ndcg@10 {alone[0]:.4f}, {alone[1]:.4f} (standard deviation {np.std(alone, ddof=1):.4f})" in told
    assert len(found.to_json()["contestants"][0]["runs"]) == 1
