import numpy as np

from turborec.data.batch import DataSpec
from turborec.data.loader import history_batch
from turborec.data.store import Histories
from turborec.models.popularity import Config


def test_everybody_gets_the_counts():
    model = Config().build(DataSpec(2, 4, 5))
    model.count(Histories(np.array([0, 3, 5]), np.array([2, 2, 4, 2, 1], np.int32), np.zeros(5, np.int64)))
    scorer = model.scorer()
    state = scorer.users(history_batch([np.array([1])] * 2, [np.array([1])] * 2, 5))
    assert scorer.score(state, 1, 5).tolist() == [[1, 3, 0, 1]] * 2
    assert scorer.score(state, 2, 3).tolist() == [[3]] * 2
