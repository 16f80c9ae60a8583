import itertools
import time

import numpy as np
import pytest
import torch

from turborec.bench import step
from turborec.bench.step import Contestant, Work

CPU = torch.device("cpu")


def spinning(seconds, order, name):
    """Steps that keep the processor busy for so long, and tell when they ran."""
    while True:
        ended = time.process_time() + seconds
        while time.process_time() < ended:
            pass
        order.append(name)
        yield Work(1, 10, 20, 25)


@pytest.mark.parametrize("n", [6, 9, 20, 51])
def test_the_interval_of_a_median_holds_it_95_times_in_a_hundred(n):
    generator = np.random.default_rng(n)
    held = 0
    for _ in range(400):
        found = step.median(generator.exponential(size=n).tolist())
        held += found.low <= np.log(2) <= found.high
    assert held >= 0.93 * 400


def test_the_interval_is_no_wider_than_it_must_be():
    assert step.median(list(range(1, 51))) == step.Median(25.5, 18, 33)  # binomial tables: ranks 18 and 33 of 50


def test_contestants_take_turns_in_an_alternating_order():
    order = []
    contestants = [Contestant(name, spinning(0.001, order, name), CPU) for name in "ab"]
    step.compete(contestants, rounds=4, seconds=0.03, warm_up=2)
    turns = [name for name, _ in itertools.groupby(order[4:])]
    assert order[:4] == ["a", "a", "b", "b"]
    assert turns == ["a", "b", "a", "b", "a"]  # a b | b a | a b | b a, neighbours merged


def test_a_contestant_that_works_three_times_as_long_has_a_third_of_the_rate():
    order = []
    fast, slow = (Contestant(name, spinning(s, order, name), CPU) for name, s in (("fast", 0.004), ("slow", 0.012)))
    quick, sluggish = step.compete([fast, slow], rounds=6, seconds=0.03)
    assert step.ratio(quick, sluggish).value == pytest.approx(3, rel=0.2)
    assert quick.total().targets == 10 * quick.total().steps
