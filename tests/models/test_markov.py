from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from turborec.data.batch import DataSpec
from turborec.data.loader import history_batch
from turborec.data.store import Histories
from turborec.models.markov import Config

ITEMS = 9


def histories(seed=0):
    generator = np.random.default_rng(seed)
    rows = [generator.integers(1, ITEMS + 1, n) for n in (1, 6, 0, 12, 2, 9)]
    return rows, Histories(np.cumsum([0, *map(len, rows)]), np.concatenate(rows).astype(np.int32), np.zeros(30, np.int64))


def by_the_formula(rows, history, steps, decay):
    """score(j) = sum_l decay^l * count(i_l -> j) / count(i_l -> any) + 1e-9 * count(j), with dictionaries."""
    pairs = Counter((int(a), int(b)) for row in rows for a, b in pairwise(row))
    leaving = Counter(a for (a, _), n in pairs.items() for _ in range(n))
    events = Counter(int(i) for row in rows for i in row)
    scores = []
    for j in range(1, ITEMS + 1):
        score = 1e-9 * events[j]
        for lag, i in enumerate(history[::-1][:steps]):
            score += decay**lag * pairs[int(i), j] / leaving[int(i)] if leaving[int(i)] else 0.0
        scores.append(score)
    return scores


@pytest.mark.parametrize(("steps", "decay"), [(1, 1.0), (5, 0.6), (20, 0.8)])
def test_scores_equal_the_formula(steps, decay):
    rows, counted = histories()
    model = Config(steps=steps, decay=decay).build(DataSpec(6, ITEMS, 20))
    model.count(counted)
    scorer = model.scorer()
    state = scorer.users(history_batch(rows, rows, 20))
    expected = torch.tensor([by_the_formula(rows, row.tolist(), steps, decay) for row in rows], dtype=torch.float64)
    assert torch.allclose(scorer.score(state, 1, ITEMS + 1), expected, atol=1e-14)
    assert torch.allclose(scorer.score(state, 4, 7), expected[:, 3:6], atol=1e-14)


def test_pairs_do_not_cross_users():
    counted = Histories(np.array([0, 2, 4]), np.array([1, 2, 3, 4], np.int32), np.zeros(4, np.int64))
    model = Config().build(DataSpec(2, 4, 5))
    model.count(counted)
    assert model.targets.tolist() == [2, 4] and model.shares.tolist() == [1.0, 1.0]


def test_equal_histories_score_equal_to_the_bit():
    rows, counted = histories()
    model = Config().build(DataSpec(6, ITEMS, 20))
    model.count(counted)
    scorer = model.scorer()
    scores = scorer.score(scorer.users(history_batch([rows[3]] * 4, [rows[3]] * 4, 20)), 1, ITEMS + 1)
    assert torch.equal(scores, scores[:1].expand(4, -1))
