import numpy as np
import pytest
import torch

from stores import store_of
from turborec.data.batch import DataSpec
from turborec.data.loader import Batches, TrainingBatches, evaluation_batches, history_batch
from turborec.data.schema import UNKNOWN_TIME

HISTORIES = [list(range(1, n + 1)) for n in (3, 5, 9, 14, 4, 30)]


@pytest.fixture
def store(tmp_path):
    return store_of(tmp_path / "store", HISTORIES)


def pairs(epoch):
    """(user, target) of every prediction of an epoch."""
    found = []
    for step in range(len(epoch)):
        batch = epoch.batch(step)
        rows, columns = batch.targets.nonzero(as_tuple=True)
        found += [(int(batch.users[r]), int(batch.targets[r, c])) for r, c in zip(rows, columns, strict=True)]
        assert batch.num_targets() == len(rows)
    return sorted(found)


def test_an_epoch_asks_for_every_training_target_once_and_no_other(store):
    epoch = TrainingBatches(store, Batches(max_length=6, tokens=16), seed=1).epoch(0)
    assert pairs(epoch) == sorted((u, t) for u, h in enumerate(HISTORIES) for t in h[1:-2])
    assert epoch.targets == len(pairs(epoch))


def test_targets_follow_their_items(store):
    epoch = TrainingBatches(store, Batches(max_length=6, tokens=16), seed=1).epoch(3)
    for step in range(len(epoch)):
        batch = epoch.batch(step)
        where = batch.targets != 0
        assert torch.equal(batch.targets[where], batch.items[where] + 1)
        assert torch.equal((batch.items != 0).sum(1), batch.lengths)


def test_batches_depend_on_seed_epoch_and_step_alone(store):
    config = Batches(max_length=6, tokens=16)
    first, again = (TrainingBatches(store, config, seed=1).epoch(2) for _ in range(2))
    other = TrainingBatches(store, config, seed=2).epoch(2)
    assert all(torch.equal(first.batch(s).items, again.batch(s).items) for s in range(len(first)))
    assert torch.equal(first.batch(0).keys, again.batch(0).keys) and first.batch(0).key == again.batch(0).key
    assert first.batch(0).key != other.batch(0).key != first.batch(1).key


def test_a_row_has_the_same_key_in_any_batching_and_another_in_any_epoch(store):
    def keys(tokens, epoch):
        plan = TrainingBatches(store, Batches(max_length=6, tokens=tokens, seams="fixed"), seed=1).epoch(epoch)
        batches = [plan.batch(s) for s in range(len(plan))]
        return {int(k) for b in batches for k in b.keys}

    assert keys(8, 0) == keys(64, 0)
    assert not keys(8, 0) & keys(8, 1)
    assert len(keys(8, 0)) == len(TrainingBatches(store, Batches(max_length=6, seams="fixed"), seed=1).epoch(0).rows.users)


def test_a_batch_stays_within_its_tokens(store):
    epoch = TrainingBatches(store, Batches(max_length=6, tokens=18), seed=1).epoch(0)
    assert max(epoch.batch(s).items.numel() for s in range(len(epoch))) <= 18
    assert 0 < epoch.fill <= 1


def test_evaluation_shows_the_newest_events_before_the_part(store):
    batches = list(evaluation_batches(store, "test", Batches(max_length=6, tokens=12)))
    shown = {int(u): row[:n].tolist() for b in batches for u, row, n in zip(b.users, b.items, b.lengths, strict=True)}
    assert shown == {u: h[:-1][-6:] for u, h in enumerate(HISTORIES)}


def test_evaluation_batches_are_fixed(store):
    config = Batches(max_length=6, tokens=12)
    first, again = (list(evaluation_batches(store, "validation", config)) for _ in range(2))
    assert all(torch.equal(a.items, b.items) for a, b in zip(first, again, strict=True))


def test_models_are_told_when_they_are_asked_where_the_recipe_says_so_and_no_more(tmp_path):
    times = [[1000 * u + 10 * t for t in h] for u, h in enumerate(HISTORIES)]
    store = store_of(tmp_path / "timed", HISTORIES, times=times)
    told, silent = (Batches(max_length=6, tokens=16, request_time=which) for which in ("target", "none"))
    for step in range(len(TrainingBatches(store, told, seed=1).epoch(0))):
        batch, other = (TrainingBatches(store, config, seed=1).epoch(0).batch(step) for config in (told, silent))
        asked = batch.targets.gather(1, batch.last()[:, None])[:, 0]
        assert torch.equal(batch.request, 1000 * batch.users + 10 * asked)
        assert other.request is None and torch.equal(other.times, batch.times)
    for part, back in (("validation", 2), ("test", 1)):
        for batch in evaluation_batches(store, part, told):
            assert batch.request.tolist() == [times[u][-back] for u in batch.users.tolist()]
            assert batch.times.max() < batch.request.max()
        assert all(batch.request is None for batch in evaluation_batches(store, part, silent))


def test_gaps_are_before_events_or_after_them(tmp_path):
    store = store_of(tmp_path / "timed", [[1, 2, 3, 4, 5]], times=[[10, 10, 40, UNKNOWN_TIME, 100]])
    for told, seconds, known in (
        (False, [0, 0, 30, 0], [False, True, True, False]),
        (True, [0, 30, 0, 0], [True, True, False, False]),
    ):
        (batch,) = evaluation_batches(store, "test", Batches(request_time="target" if told else "none"))
        found = batch.gaps(DataSpec(1, 5, 50, told=told))
        assert [part.tolist()[0] for part in found] == [seconds, known]
        (batch,) = evaluation_batches(store, "validation", Batches(request_time="target" if told else "none"))
        assert batch.gaps(DataSpec(1, 5, 50, ticks=10, told=told))[0].tolist() == [[0, 3, 0] if told else [0, 0, 3]]


def test_histories_from_outside_keep_their_newest_events():
    history = [np.array([4, 5, 6]), np.array([], dtype=np.int64)]
    batch = history_batch(history, [np.array([1, 2, 3]), np.array([], dtype=np.int64)], max_length=2)
    assert batch.items.tolist() == [[5, 6], [0, 0]]
    assert batch.times.tolist() == [[2, 3], [UNKNOWN_TIME] * 2]
    assert batch.lengths.tolist() == [2, 0] and batch.users.tolist() == [-1, -1]


def test_overlap_must_leave_targets():
    with pytest.raises(ValueError, match="overlap"):
        Batches(max_length=5, overlap=5)
