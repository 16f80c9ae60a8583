"""The bootstrap against a plain loop, theory and simulation; Holm's correction by hand."""

import numpy as np
import pytest
from scipy import stats

from turborec import intervals
from turborec.intervals import holm, p_values, percentile_intervals, resampled_means


def by_a_loop(values, resamples, seed):
    """The same means, one resample at a time, from the same draws."""
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(values), (resamples, len(values)))
    return np.asarray([values[rows].mean(axis=0) for rows in drawn])


def test_means_are_those_of_a_plain_loop(monkeypatch):
    values = np.random.default_rng(1).normal(size=(23, 3))
    monkeypatch.setattr(intervals, "CHUNK_BYTES", 10**9)
    np.testing.assert_allclose(resampled_means(values, 200, seed=5), by_a_loop(values, 200, 5), rtol=0, atol=1e-14)


def test_chunks_change_nothing(monkeypatch):
    values = np.random.default_rng(1).normal(size=(23, 3))
    whole = resampled_means(values, 100, seed=5)
    monkeypatch.setattr(intervals, "CHUNK_BYTES", 23 * 8 * 7)
    np.testing.assert_allclose(resampled_means(values, 100, seed=5), whole, rtol=0, atol=1e-15)


def test_columns_share_their_samples():
    values = np.random.default_rng(1).normal(size=(40, 2))
    means = resampled_means(np.column_stack([values, values[:, 0] - values[:, 1]]), 300)
    np.testing.assert_allclose(means[:, 0] - means[:, 1], means[:, 2], rtol=0, atol=1e-14)


def test_users_are_drawn_with_all_they_have():
    generator = np.random.default_rng(1)
    of_user = [generator.normal(size=(count, 2)) for count in generator.integers(0, 5, 30)]
    means = np.asarray([rows.mean(axis=0) if len(rows) else (0, 0) for rows in of_user])
    counts = np.tile([[len(rows)] for rows in of_user], 2)
    drawn = np.random.default_rng(5).integers(0, 30, (200, 30))
    plain = [np.concatenate([of_user[user] for user in users]).mean(axis=0) for users in drawn]
    np.testing.assert_allclose(resampled_means(means, 200, seed=5, counts=counts.astype(float)), plain, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(resampled_means(means, 200, 5, np.ones((30, 2))), resampled_means(means, 200, 5))


def test_samples_of_nobody_with_a_value_say_nothing():
    values, counts = np.array([[1.0], [3.0], *[[0.0]] * 8]), np.array([[1.0], [1.0], *[[0.0]] * 8])
    means = resampled_means(values, 400, seed=2, counts=counts)
    there = means[np.isfinite(means)]
    assert 250 < len(there) < 400
    (low,), (high,) = percentile_intervals(means)
    assert (low, high) == pytest.approx(tuple(np.quantile(there, [0.025, 0.975])))
    assert p_values(means - 2)[0] == p_values((there - 2)[:, None])[0]


def test_intervals_agree_with_scipy():
    values = np.random.default_rng(2).exponential(size=200)
    low, high = percentile_intervals(resampled_means(values[:, None], 20_000))
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(3))
    assert low[0] == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert high[0] == pytest.approx(theirs.confidence_interval.high, abs=0.01)


def test_ninety_five_in_a_hundred_intervals_hold_the_true_difference():
    generator = np.random.default_rng(0)
    simulated = generator.choice([-1, 0, 0, 0, 0, 0, 0, 1, 1], size=(200, 400)).astype(float)  # hits won and lost; mean 1/9
    low, high = percentile_intervals(resampled_means(simulated, 1_000))
    covered = np.mean((low <= 1 / 9) & (high >= 1 / 9))
    assert 0.92 <= covered <= 0.97  # 400 of them: 0.95 ± 2.2 standard errors, and a little less than 95 % is known of it


def test_without_a_difference_one_in_twenty_p_values_is_below_a_twentieth():
    simulated = np.random.default_rng(1).normal(size=(200, 400))
    p = p_values(resampled_means(simulated, 1_000))
    assert 0.03 <= np.mean(p < 0.05) <= 0.08
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_p_values_agree_with_the_interval_and_are_near_the_t_test():
    values = np.random.default_rng(4).normal(0.15, 1, size=(300, 20))
    means = resampled_means(values, 10_000)
    low, high = percentile_intervals(means)
    p = p_values(means)
    assert ((p < 0.05) == ((low > 0) | (high < 0)))[np.abs(p - 0.05) > 0.002].all()
    np.testing.assert_allclose(p, stats.ttest_1samp(values, 0).pvalue, atol=0.02)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1.0] * 99, 2 / 100),  # none on the other side: twice (1 + 0) of 100
        ([0.0] * 99, 1.0),
        ([-1.0] * 4 + [1.0] * 95, 2 * 5 / 100),
        ([-1.0, 1.0] * 50, 1.0),
    ],
)
def test_p_values_by_hand(differences, expected):
    assert p_values(np.asarray(differences)[:, None])[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.04, 0.01, 0.02], [0.04, 0.03, 0.04]),  # .01 x 3 = .03, .02 x 2 = .04, .04 x 1 = .04
        ([0.01, 0.01], [0.02, 0.02]),
        ([0.3, 0.5, 0.9], [0.9, 1.0, 1.0]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm_by_hand(values, expected):
    np.testing.assert_allclose(holm(np.asarray(values)), expected)


def test_holm_keeps_false_alarms_of_a_whole_family_below_a_twentieth():
    generator = np.random.default_rng(2)
    families = generator.uniform(size=(2_000, 10))
    alarms = np.mean([(holm(family) < 0.05).any() for family in families])
    assert 0.03 <= alarms <= 0.06
