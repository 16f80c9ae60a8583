"""Distances of counts against SciPy's on the same distributions."""

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance

from turborec.drift.statistics import (
    Embedded,
    deciles,
    jensen_shannon,
    kolmogorov_smirnov,
    left,
    popularity,
    second_share,
    stability,
    wasserstein,
)

GENERATOR = np.random.default_rng(0)
P, Q = GENERATOR.integers(0, 50, (2, 12)).astype(float)


def test_distances_are_those_of_scipy():
    assert jensen_shannon(P, Q) == pytest.approx(distance.jensenshannon(P, Q, base=2) ** 2)
    places = np.arange(12.0)
    assert wasserstein(0.5)(P, Q) == pytest.approx(stats.wasserstein_distance(places / 2, places / 2, P, Q))
    samples = [np.repeat(places, counts.astype(int)) for counts in (P, Q)]
    assert kolmogorov_smirnov(P, Q) == pytest.approx(stats.ks_2samp(*samples).statistic)


def test_they_work_on_many_at_once_and_on_nothing():
    both = np.stack([P, Q])
    for measure in (jensen_shannon, stability, kolmogorov_smirnov, wasserstein(1.0), left):
        assert measure(both, both[::-1]).tolist() == pytest.approx([float(measure(P, Q)), float(measure(Q, P))])
        assert measure(P, P) == pytest.approx(0.0)
        assert np.isfinite(measure(P, np.zeros(12)))


def test_the_stability_index_by_hand():
    p, q = (100.5 / 201, 100.5 / 201), (150.5 / 201, 50.5 / 201)
    expected = sum((b - a) * np.log(b / a) for a, b in zip(p, q, strict=True))
    assert stability([100, 100], [150, 50]) == pytest.approx(expected)


def test_shares_by_hand():
    assert second_share([90, 10], [60, 40]) == pytest.approx(0.3)
    assert left([5, 3, 2], [1, 0, 7]) == pytest.approx(0.3)
    assert popularity([0, 100, 50, 25, 25], [0, 100, 50, 25, 25]) == pytest.approx(0.0)
    assert deciles([0, 100, 50, 25, 25]).tolist() == [9, 0, 5, 7, 7]
    reference, current = np.array([[0, 100, 50, 25, 25], [0, 25, 25, 50, 100]]), np.array([0, 25, 25, 50, 100])
    assert popularity(reference, current)[0] > 0.25 and popularity(reference, current)[1] == pytest.approx(0.0)
    moved = Embedded(np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]))
    assert moved([0, 10, 10], [0, 20, 0]) == pytest.approx(1.0)
