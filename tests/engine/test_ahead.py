"""Batches come in their order whoever makes them, and a thread that makes them ends with its iterator."""

import threading

import pytest
import torch

from turborec.data.batch import DataSpec, SequenceBatch
from turborec.engine.ahead import in_thread, ordered

CPU = torch.device("cpu")


def unchanged(batch):
    return batch


class Batches:
    key = number = 0

    def __init__(self, broken=None):
        self.broken, self.threads, self.made = broken, [], []

    def __len__(self):
        return 6

    def batch(self, step):
        if step == self.broken:
            raise ValueError("torn")
        self.threads.append(threading.current_thread().name)
        self.made.append(step)
        return SequenceBatch.example(DataSpec(3, 5, 4), 2, torch.Generator().manual_seed(step))


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("turborec-batches")]


@pytest.mark.parametrize("first", [0, 4, 6])
def test_they_are_the_same_in_a_thread(first):
    plain, ahead = Batches(), Batches()
    expected, got = list(ordered(plain, first, CPU, unchanged)), list(in_thread(ahead, first, unchanged))
    assert plain.made == ahead.made == list(range(first, 6))
    assert all(torch.equal(a.items, b.items) for a, b in zip(expected, got, strict=True))
    assert set(plain.threads) <= {threading.current_thread().name}
    assert all(name.startswith("turborec-batches") for name in ahead.threads)
    assert threads() == []


def test_one_is_made_while_another_is_used():
    batches = Batches()
    coming = in_thread(batches, 0, unchanged)
    next(coming)
    while len(batches.made) < 2:
        pass
    assert batches.made == [0, 1]
    coming.close()
    assert threads() == []


def test_an_error_comes_out_at_its_step():
    coming = in_thread(Batches(broken=2), 0, unchanged)
    next(coming), next(coming)
    with pytest.raises(ValueError, match="torn"):
        next(coming)
    assert threads() == []
