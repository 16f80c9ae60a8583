"""Losses whose causes are known."""

import numpy as np
import pytest

from turborec.drift.attribution import CAUSES, Targets, chance, losses


def targets(generator, number, new_items=0.05, new_users=0.1, known=0.4, rare=0.3):
    """Values that are higher for frequent kinds, 0.02 for new items and 0.2 for new users."""
    item = generator.random(number) < new_items
    user = generator.random(number) < new_users
    kind = (generator.random(number) < rare).astype(np.int64)
    expected = np.where(item, 0.02, np.where(user, 0.2, known + 0.1 * (1 - kind)))
    return Targets((generator.random(number) < expected).astype(float), item, user, kind)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"new_items": 0.4}, "new items"),
        ({"new_users": 0.7}, "new users"),
        ({"rare": 0.95}, "mix"),
        ({"known": 0.2}, "preference"),
    ],
)
def test_the_cause_is_found_and_the_parts_add_up(change, cause):
    generator = np.random.default_rng(0)
    before, now = targets(generator, 20_000), targets(generator, 20_000, **change)
    found, drawn = losses(before, now, resamples=200)
    assert found.sum() == pytest.approx(before.values.mean() - now.values.mean(), abs=1e-12)
    np.testing.assert_allclose(drawn.mean(0), found, atol=0.01)
    assert CAUSES[int(np.argmax(found))] == cause and found.max() > 0.05
    assert np.abs(np.delete(found, int(np.argmax(found)))).max() < 0.02
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    assert low[CAUSES.index(cause)] > 0 and ((high - low) < 0.05).all()


def test_intervals_hold_nothing_as_often_as_they_should():
    """95 % intervals of causes between samples of one world: about one in twenty is beside zero, by cause."""
    generator, beside = np.random.default_rng(0), np.zeros(4)
    for _ in range(100):
        _, drawn = losses(targets(generator, 500), targets(generator, 500), resamples=200)
        low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
        beside += (low > 0) | (high < 0)
    assert (beside <= 12).all(), beside


def test_groups_that_are_empty():
    generator = np.random.default_rng(0)
    before = targets(generator, 200, new_items=0.0, new_users=0.0)
    found, _ = losses(before, targets(generator, 200, new_items=1.0), resamples=10)
    assert np.isfinite(found).all()


def test_a_few_targets_that_are_all_missed_are_no_loss_by_chance():
    """Four hits among 55 before and none among 49 now: no resample of those has a hit, so the interval lies above zero."""
    none, kind = np.zeros(55, bool), np.zeros(55, np.int64)
    before = Targets((np.arange(55) < 4) * 0.6, none, none, kind)
    now = Targets(np.zeros(49), none[:49], none[:49], kind[:49])
    _, drawn = losses(before, now)
    assert np.quantile(drawn.sum(1), 0.05 / 6) >= 0
    assert chance(before, now) > 0.05
    many = Targets((np.arange(2000) % 4 == 0) * 1.0, *(np.zeros(2000, kind) for kind in (bool, bool, np.int64)))
    fewer = Targets((np.arange(2000) % 5 == 0) * 1.0, *(np.zeros(2000, kind) for kind in (bool, bool, np.int64)))
    assert chance(many, fewer) < 0.002 and chance(many, many) > 0.3 and chance(fewer, many) > 0.9


def test_a_catalogue_that_is_new_altogether_is_laid_to_new_items():
    """What becomes of the few targets that are known is not charged for all."""
    generator = np.random.default_rng(0)
    before = targets(generator, 20_000, new_items=0.3)
    found, _ = losses(before, targets(generator, 20_000, new_items=0.98, known=0.0, rare=1.0), resamples=10)
    assert CAUSES[int(np.argmax(found))] == "new items" and found[0] > 0.9 * found.sum() and (found > -0.01).all()


def test_nobody_known_is_charged_with_nothing():
    generator = np.random.default_rng(0)
    for first, second in ((0.1, 1.0), (1.0, 0.1), (1.0, 1.0)):
        before, now = (targets(generator, 5000, new_items=0.1, new_users=share) for share in (first, second))
        found, _ = losses(before, now, resamples=10)
        assert found.sum() == pytest.approx(before.values.mean() - now.values.mean(), abs=1e-12)
        assert found[2:].tolist() == [0, 0]
