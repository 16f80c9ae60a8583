import doctest
from collections.abc import Iterator
from typing import get_args

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turborec import metrics
from turborec.metrics import (
    ARP,
    HR,
    MAP,
    MRR,
    NDCG,
    CatalogueAUC,
    Coverage,
    Exposure,
    ListMetric,
    Precision,
    RankMetric,
    Ranks,
    Recall,
    definition,
)

CUTOFFS = (1, 2, 5, 10, 50)
ORACLES = {
    "hr": (HR, ir_measures.Success),
    "recall": (Recall, ir_measures.R),
    "precision": (Precision, ir_measures.P),
    "ndcg": (NDCG, ir_measures.nDCG),
    "mrr": (MRR, ir_measures.RR),
    "map": (MAP, ir_measures.AP),
}


def test_every_metric_has_a_worked_example_that_holds():
    assert doctest.testmod(metrics).failed == 0
    assert all(">>> " in metric.__doc__ for union in (RankMetric, ListMetric) for metric in get_args(union))


def random_users(seed: int, users: int = 40, items: int = 30) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Distinct scores of all items and a random set of targets, of very different sizes."""
    generator = np.random.default_rng(seed)
    for _ in range(users):
        size = generator.integers(1, items + 1)
        yield generator.permutation(items).astype(float), generator.choice(items, size, replace=False)


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("k", CUTOFFS)
def test_metrics_agree_with_ir_measures(name, k):
    ours, theirs = ORACLES[name]
    users = list(random_users(seed=k))
    ranks = Ranks.of([[1 + (scores > scores[t]).sum() for t in targets] for scores, targets in users], candidates=30)

    run = {str(u): {str(i): s for i, s in enumerate(scores)} for u, (scores, _) in enumerate(users)}
    relevant = {str(u): {str(t): 1 for t in targets} for u, (_, targets) in enumerate(users)}
    expected = {int(m.query_id): m.value for m in ir_measures.iter_calc([theirs @ k], relevant, run)}
    # trec_eval divides the average precision by all targets, we by those that have room.
    room = [len(t) / min(len(t), k) if name == "map" else 1 for _, t in users]

    values = ours(k=k).per_user(ranks)
    np.testing.assert_allclose(values, [expected[u] * room[u] for u in range(len(users))], rtol=1e-12)


@pytest.mark.parametrize("name", ORACLES)
def test_metrics_agree_with_ir_measures_when_nothing_relevant_is_retrieved(name):
    ours, theirs = ORACLES[name]
    expected = ir_measures.calc_aggregate([theirs @ 5], {"u": {"x": 1, "y": 1}}, {"u": {"a": 2.0, "b": 1.0}})
    assert ours(k=5).per_user(Ranks.of([[6, 7]], candidates=9)).tolist() == list(expected.values()) == [0]


def test_reciprocal_rank_without_a_cutoff_looks_at_all_places():
    run = {"u": {str(i): -float(i) for i in range(1, 200)}}
    (expected,) = ir_measures.calc_aggregate([ir_measures.RR], {"u": {"150": 1, "180": 1}}, run).values()
    assert MRR().per_user(Ranks.of([[150, 180]], candidates=199)).tolist() == [expected]


def test_a_fractional_rank_is_a_hit_when_it_is_within_k():
    ranks = Ranks.of([[2.5]], candidates=4)
    assert [HR(k=k).per_user(ranks).tolist() for k in (2, 3)] == [[0], [1]]
    assert NDCG(k=3).per_user(ranks).tolist() == [1 / np.log2(3.5)]
    assert MRR().per_user(ranks).tolist() == [1 / 2.5]


def test_several_targets_by_hand():
    ranks = Ranks.of([[1, 4, 5], [3]], candidates=10)
    assert Recall(k=4).per_user(ranks).tolist() == [2 / 3, 1]
    assert Precision(k=4).per_user(ranks).tolist() == [2 / 4, 1 / 4]
    assert MAP(k=4).per_user(ranks).tolist() == [(1 / 1 + 2 / 4) / 3, 1 / 3]
    ideal = 1 + 1 / np.log2(3) + 1 / np.log2(4)
    np.testing.assert_allclose(NDCG(k=4).per_user(ranks), [(1 + 1 / np.log2(5)) / ideal, 0.5])


def test_a_perfect_list_scores_one_however_many_targets_there_are():
    ranks = Ranks.of([list(range(1, t + 1)) for t in (1, 3, 8)], candidates=20)
    for metric in (HR(k=3), MAP(k=3), NDCG(k=3), MRR(), CatalogueAUC()):
        assert metric.per_user(ranks).tolist() == [1, 1, 1]


def test_auc_counts_pairs_of_targets_and_other_candidates():
    generator = np.random.default_rng(0)
    scores, targets = generator.integers(0, 4, 12), [0, 3, 7]
    others = [i for i in range(12) if i not in targets]
    pairs = [(scores[t] > scores[o]) + 0.5 * (scores[t] == scores[o]) for t in targets for o in others]
    midranks = [1 + (scores > scores[t]).sum() + 0.5 * ((scores == scores[t]).sum() - 1) for t in targets]
    assert CatalogueAUC().per_user(Ranks.of([midranks], candidates=12))[0] == pytest.approx(np.mean(pairs))


def test_auc_says_nothing_where_every_candidate_is_a_target():
    assert CatalogueAUC().per_user(Ranks.of([[1, 2]], candidates=2)).tolist() == [0.5]


def test_a_lone_target_takes_the_mean_of_the_places_it_shares():
    ranks = Ranks.of_counts(np.array([0, 1, 2]), np.array([0, 4]), np.array([0, 3]), np.array([9, 9]))
    assert ranks.values.tolist() == [1, (5 + 6 + 7 + 8) / 4]


def test_targets_that_tie_take_the_expected_places_of_a_random_order():
    # Two targets and two others share places 2..5: the better target stands at 2 + E[min] and so on.
    places = [sorted(p) for p in [(a, b) for a in range(2, 6) for b in range(2, 6) if a < b]]
    ranks = Ranks.of_counts(np.array([0, 2]), np.array([1, 1]), np.array([3, 3]), np.array([9]))
    np.testing.assert_allclose(ranks.values, np.mean(places, axis=0))


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=4), st.integers(1, 10))
def test_no_metric_leaves_zero_to_one_and_no_more_than_k_hits_count(scores, k):
    """Every item is a target, so ties among targets abound."""
    counts = [sorted(((np.array(user) > s).sum(), (np.array(user) == s).sum() - 1) for s in user) for user in scores]
    greater, equal = np.array([pair for user in counts for pair in user]).T
    offsets = np.cumsum([0, *map(len, scores)])
    ranks = Ranks.of_counts(offsets, greater, equal, np.diff(offsets))
    assert ranks.values.tolist() == [place for user in scores for place in range(1, len(user) + 1)]
    for metric in (HR(k=k), Recall(k=k), Precision(k=k), NDCG(k=k), MAP(k=k), MRR(k=k), CatalogueAUC()):
        values = metric.per_user(ranks)
        assert (values >= 0).all() and (values <= 1 + 1e-12).all()


def test_coverage_and_popularity_by_hand():
    exposure = Exposure(listed=np.array([0, 2, 0, 1, 1]), events=np.array([0, 10, 5, 2, 0]))
    assert Coverage(k=2).value(exposure) == 3 / 4
    assert ARP(k=2).value(exposure) == (10 + 10 + 2 + 0) / 4


def test_empty_lists_have_no_popularity():
    assert ARP(k=2).value(Exposure(listed=np.zeros(3, np.int64), events=np.array([0, 1, 2]))) == 0


def test_metrics_know_their_names_and_definitions():
    every = (HR(k=1), Recall(k=10), NDCG(k=10), MAP(k=10), Precision(k=10), MRR(), MRR(k=5), CatalogueAUC(), Coverage(), ARP())
    names = "hr@1 recall@10 ndcg@10 map@10 precision@10 mrr mrr@5 catalogue_auc coverage@10 arp@10"
    assert [metric.name for metric in every] == names.split()
    assert definition(HR()) == "Hit rate: 1 if any target ranks within k, else 0."
