"""Early stopping counts epochs, remembers the best, and survives a round trip through JSON."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turborec.engine.stopping import EarlyStopping, StopperState, still_rising

VALUES = st.lists(st.sampled_from([0.1, 0.2, 0.25, 0.3, math.nan]), max_size=30)


def after(rule: EarlyStopping, values: list[float], every: int = 1) -> StopperState:
    """The state after evaluations every `every` epochs."""
    state = StopperState()
    for number, value in enumerate(values, start=1):
        state = rule.update(state, number * every, value)
    return state


def test_the_first_of_equal_best_values_is_remembered() -> None:
    state = after(EarlyStopping(), [0.1, 0.3, 0.2, 0.3])
    assert (state.best, state.best_epoch) == (0.3, 2)


def test_it_stops_when_patience_epochs_brought_nothing() -> None:
    rule = EarlyStopping(patience_epochs=3)
    assert not rule.should_stop(after(rule, [0.1, 0.3, 0.2, 0.2]))
    assert rule.should_stop(after(rule, [0.1, 0.3, 0.2, 0.2, 0.2]))


def test_evaluating_less_often_does_not_train_longer() -> None:
    rule = EarlyStopping(patience_epochs=10)
    assert not rule.should_stop(after(rule, [0.3, 0.2], every=5))
    assert rule.should_stop(after(rule, [0.3, 0.2, 0.2], every=5))


def validated(rule: EarlyStopping, values: list[float], epochs: int) -> list[int]:
    """The epochs that are validated of a stage where epoch n is worth values[n - 1], until it ends or stops early."""
    state, found = StopperState(), []
    for epoch in range(1, epochs + 1):
        if rule.should_stop(state):
            break
        if rule.due(state, epoch, epochs):
            state, found = rule.update(state, epoch, values[epoch - 1]), [*found, epoch]
    return found


def test_validations_are_as_rare_as_asked_for_and_the_last_epoch_has_one() -> None:
    rising = [float(n) for n in range(10)]
    assert validated(EarlyStopping(patience_epochs=None), rising, 5) == [1, 2, 3, 4, 5]
    assert validated(EarlyStopping(patience_epochs=None, every=3), rising, 9) == [3, 6, 9]
    assert validated(EarlyStopping(patience_epochs=None, every=3), rising, 10) == [3, 6, 9, 10]
    assert validated(EarlyStopping(patience_epochs=None, every=30), rising, 10) == [10]


@pytest.mark.parametrize("every", range(1, 12))
def test_patience_ends_in_its_epoch_however_rare_validations_are(every: int) -> None:
    worst = [0.9, *[0.1] * 19]
    found = validated(EarlyStopping(patience_epochs=7, every=every), worst, 20)
    first = min(every, 7)  # whose value is the best that is seen
    assert (found[0], found[-1]) == (first, first + 7)


def test_a_gain_within_min_delta_is_the_best_but_buys_no_patience() -> None:
    rule = EarlyStopping(patience_epochs=2, min_delta=0.1)
    state = after(rule, [0.50, 0.55, 0.59])
    assert (state.best, state.best_epoch) == (0.59, 3)
    assert rule.should_stop(state)


def test_small_gains_that_add_up_to_min_delta_buy_patience() -> None:
    rule = EarlyStopping(patience_epochs=2, min_delta=0.1)
    assert not rule.should_stop(after(rule, [0.50, 0.55, 0.61]))


def test_negative_values_work_so_that_a_loss_may_be_negated() -> None:
    state = after(EarlyStopping(), [-3.0, -1.0, -2.0])
    assert (state.best, state.best_epoch) == (-1.0, 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_never_the_best_and_does_not_hide_what_follows(value: float) -> None:
    state = after(EarlyStopping(), [value, 0.1, value])
    assert (state.best, state.best_epoch, state.epoch) == (0.1, 2, 3)


def test_nothing_but_nan_stops_as_well() -> None:
    rule = EarlyStopping(patience_epochs=2)
    state = after(rule, [math.nan, math.nan])
    assert state.best is None
    assert rule.should_stop(state)


def test_without_patience_it_never_stops_but_remembers_the_best() -> None:
    rule = EarlyStopping(patience_epochs=None)
    state = after(rule, [0.3] + 999 * [0.2])
    assert not rule.should_stop(state)
    assert state.best_epoch == 1


@given(VALUES, st.integers(0, 29))
def test_going_on_from_json_is_the_same_as_never_having_stopped(values: list[float], cut: int) -> None:
    rule = EarlyStopping(patience_epochs=3, min_delta=0.05)
    state = after(rule, values[:cut])
    state = StopperState.from_json(json.loads(json.dumps(state.to_json(), allow_nan=False)))
    for number, value in enumerate(values[cut:], start=len(values[:cut]) + 1):
        state = rule.update(state, number, value)
    assert state == after(rule, values)


@given(VALUES)
def test_the_best_is_the_maximum(values: list[float]) -> None:
    assert after(EarlyStopping(min_delta=0.07), values).best == max((v for v in values if v == v), default=None)


def test_update_leaves_the_state_it_was_given() -> None:
    state = StopperState()
    EarlyStopping().update(state, 1, 0.5)
    assert state == StopperState()


@pytest.mark.parametrize(
    ("values", "rising"),
    [
        ([0.1], True),
        ([0.1, 0.2], True),
        ([0.1, 0.2, 0.2], False),
        ([*[0.1] * 10, 0.15, 0.1005, 0.1, 0.1], False),
        ([*[0.1] * 18, 0.1, 0.102], True),
        ([*[0.1] * 18, 0.102, 0.1], True),
        ([*[0.1] * 18, 0.1, 0.1009], False),
    ],
)
def test_a_training_that_ends_while_validation_rises_is_told(values, rising):
    assert still_rising(values) is rising
