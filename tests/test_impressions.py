"""Values of impressions against the official definitions, worked by hand and over all orders of what ties."""

from itertools import permutations

import numpy as np
import pytest

from turborec import impressions


def official(ranked):
    """AUC, MRR, nDCG@5 and @10 of labels in ranked order, as the scorer for MIND writes them."""
    labels = np.asarray(ranked, dtype=float)
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    auc = np.mean([p < n for p in positive for n in negative]) if len(negative) else np.nan
    mrr = (labels / (np.arange(len(labels)) + 1)).sum() / labels.sum()

    def dcg(given, k):
        return ((2 ** given[:k] - 1) / np.log2(np.arange(len(given[:k])) + 2)).sum()

    best = np.sort(labels)[::-1]
    return [auc, mrr, *(dcg(labels, k) / dcg(best, k) for k in (5, 10))]


def by_definition(scores, labels):
    """The mean over every order that the scores allow."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    groups = [[i for i in order if scores[i] == value] for value in sorted(set(scores), reverse=True)]
    orders = [[]]
    for group in groups:
        orders = [done + list(more) for done in orders for more in permutations(group)]
    return np.mean([official([labels[i] for i in one]) for one in orders], axis=0)


def found(scores, labels, sizes):
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return impressions.values(np.asarray(scores, dtype=np.float32), np.asarray(labels, dtype=bool), offsets)


def test_by_hand():
    # Clicked: the second and the fourth of five. AUC: of six pairs the second wins two, the fourth one.
    values = found([5, 4, 3, 2, 1], [0, 1, 0, 1, 0], [5])
    assert values["auc"][0] == pytest.approx(3 / 6)
    assert values["mrr"][0] == pytest.approx((1 / 2 + 1 / 4) / 2)
    ideal = 1 + 1 / np.log2(3)
    assert values["ndcg@5"][0] == pytest.approx((1 / np.log2(3) + 1 / np.log2(5)) / ideal)
    assert values["ndcg@10"][0] == values["ndcg@5"][0]


def test_many_impressions_with_and_without_ties_are_as_defined():
    generator = np.random.default_rng(0)
    scores, labels, sizes, expected = [], [], [], []
    for _ in range(60):
        size = int(generator.integers(2, 8))
        own = generator.integers(0, 4, size).tolist()
        clicks = generator.permutation([1, 0, *generator.integers(0, 2, size - 2)]).tolist()
        scores, labels, sizes = scores + own, labels + clicks, [*sizes, size]
        expected.append(by_definition(own, clicks))
    values = found(scores, labels, sizes)
    assert np.allclose(np.stack(list(values.values()), axis=1), expected, atol=1e-12)
    assert list(values) == ["auc", "mrr", "ndcg@5", "ndcg@10"]


def test_longer_lists_are_cut_at_five_and_ten():
    generator = np.random.default_rng(1)
    scores, labels = generator.permutation(40).tolist(), (generator.random(40) < 0.3).astype(int).tolist()
    ranked = [labels[i] for i in np.argsort(-np.asarray(scores))]
    values = found(scores, labels, [40])
    assert [value[0] for value in values.values()] == pytest.approx(official(ranked))


def test_what_is_not_defined_is_no_number():
    values = found([1, 2, 3, 4, 1], [0, 0, 1, 1, 1], [2, 2, 1, 0])
    assert np.isnan(values["auc"]).all()
    assert np.isnan(values["mrr"][[0, 3]]).all() and values["mrr"][[1, 2]].tolist() == [0.75, 1.0]
    assert found([], [], [])["auc"].tolist() == []
    with pytest.raises(ValueError, match="finite"):
        found([float("nan")], [1], [1])
