"""The simulator against its own formula: what it draws, what the oracle says, and what each parameter changes."""

import tracemalloc
from datetime import UTC, date, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from turborec.errors import UserError
from turborec.recipe import validate
from turborec.sources import simulated
from turborec.sources.simulated import DAY, Config, Oracle

Int = NDArray[np.int64]


class Data(NamedTuple):
    users: Int  # numbers 0..U-1
    items: Int  # numbers 1..V
    times: Int
    follows: NDArray[np.bool_]  # the event before is of the same user


def simulate(config: Config, folder: Path) -> Data:
    config.download(folder)
    table = pq.read_table(config.parse(folder).events.paths[0])
    users, items, times = (table[name].to_numpy() for name in ("user", "item", "time"))
    users, items = users - 10 ** len(str(config.users)), items - 10 ** len(str(config.items))
    return Data(users, items, times, np.concatenate([[False], users[1:] == users[:-1]]))


def log_probability(oracle: Oracle, data: Data, rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    previous = np.where(data.follows, np.roll(data.items, 1), 0)
    return oracle.log_probability(data.users[rows], previous[rows], data.times[rows])


SMALL = Config(users=9000, items=24, clusters=4, mean_length=8, longest=40, successors=2, cold=0.2, drift=date(2020, 6, 1))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """More users than a block holds, and three periods."""
    return simulate(SMALL, tmp_path_factory.mktemp("simulated"))


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(SMALL)


def test_oracle_is_the_stated_formula(oracle: Oracle) -> None:
    world, a = oracle.world, SMALL.sequential
    order = [oracle.world.random(simulated.WORLD).permutation(SMALL.items)]  # the first draw: who is in which cluster
    assert [world.cluster[i] for i in order[0]] == [k % SMALL.clusters for k in range(SMALL.items)]
    for user, previous, time in ((5, 7, world.begin), (8500, 1, world.drift), (3, 0, world.newcomers), (3, 2, world.newcomers)):
        theta = world.tastes(user // simulated.BLOCK_USERS)[user % simulated.BLOCK_USERS]
        drifted, late = int(time >= world.drift), time >= world.newcomers
        sale = [late or not cold for cold in world.cold]
        weight = [rank**-SMALL.popularity * on for rank, on in zip(world.ranks[drifted], sale, strict=True)]
        kernel = [2.0**-k * sale[s - 1] for k, s in enumerate(world.successors[previous - 1], start=1)]
        for j in range(SMALL.items):
            c = int(world.cluster[j])
            q = weight[j] / sum(w for w, other in zip(weight, world.cluster, strict=True) if other == c)
            k = sum(w for w, s in zip(kernel, world.successors[previous - 1], strict=True) if s == j + 1) / sum(kernel)
            taste = theta[(c + drifted) % SMALL.clusters] * q
            expected = (1 - a) * taste + a * k if previous else taste
            got = oracle.log_probability(np.array([user]), np.array([previous]), np.array([time]))[0, j]
            assert np.exp(got) == pytest.approx(expected, abs=1e-12)


def test_probabilities_sum_to_one(oracle: Oracle, small: Data) -> None:
    sums = np.exp(log_probability(oracle, small, small.times % 7 == 0)).sum(axis=1)
    np.testing.assert_allclose(sums, 1, atol=1e-12)


def test_transitions_occur_as_often_as_the_oracle_says(oracle: Oracle, small: Data) -> None:
    """Per period, item before and item: (count - expected) / deviation is standard normal."""
    everything = np.ones(len(small.items), dtype=bool)
    chance = np.exp(log_probability(oracle, small, everything))
    previous = np.where(small.follows, np.roll(small.items, 1), 0)
    group = oracle.world.period(small.times) * (SMALL.items + 1) + previous
    cells = (3 * (SMALL.items + 1), SMALL.items)
    counts, expected, variance = (np.zeros(cells) for _ in range(3))
    np.add.at(counts, (group, small.items - 1), 1)
    np.add.at(expected, group, chance)
    np.add.at(variance, group, chance * (1 - chance))
    assert not counts[expected == 0].any()
    z = ((counts - expected) / np.sqrt(np.maximum(variance, 1e-9)))[expected > 10]
    assert len(z) > 500 and abs(z).max() < 5 and 0.85 < (z**2).mean() < 1.15


def test_mean_log_probability_is_the_negative_entropy(oracle: Oracle, small: Data) -> None:
    logs = log_probability(oracle, small, np.ones(len(small.items), dtype=bool))
    entropy = -(np.exp(logs) * np.where(np.isfinite(logs), logs, 0)).sum(axis=1)
    surprise = -logs[np.arange(len(logs)), small.items - 1]
    assert abs((surprise - entropy).mean()) < 4 * (surprise - entropy).std() / len(logs) ** 0.5


def test_cold_items_come_late_and_only_then(oracle: Oracle, small: Data) -> None:
    cold = oracle.world.cold[small.items - 1]
    assert oracle.world.cold.sum() == round(0.2 * 24)
    assert small.times[cold].min() >= oracle.world.newcomers
    assert set(small.items[cold]) == set(np.flatnonzero(oracle.world.cold) + 1)


def test_drift_changes_what_is_popular_at_its_date(oracle: Oracle, small: Data) -> None:
    drift = int(datetime(2020, 6, 1, tzinfo=UTC).timestamp())
    assert oracle.world.drift == drift
    first = ~small.follows
    parts = [small.items[first & (small.times // DAY < drift // DAY)], small.items[first & (small.times >= drift)]]
    before, after = (np.bincount(part, minlength=25)[1:] / len(part) for part in parts)
    assert abs(before - after).sum() / 2 > 0.2  # total variation


def test_oracle_ranks_far_better_than_popularity(tmp_path: Path) -> None:
    config = Config(users=3000, items=400, mean_length=15, cold=0)
    data = simulate(config, tmp_path)
    last = np.append(~data.follows[1:], True)
    target = data.items[last] - 1
    logs = log_probability(Oracle(config), data, last)
    counts = np.bincount(data.items[~last], minlength=401)[1:].astype(float)
    hits = [(s > s[np.arange(len(target)), target][:, None]).sum(axis=1) < 10 for s in (logs, np.tile(counts, (3000, 1)))]
    optimum, popularity = (hit.mean() for hit in hits)
    assert optimum > 0.6 and optimum > 4 * popularity


@pytest.mark.parametrize("sequential", [0.0, 1.0])
def test_extremes_of_sequence_are_taste_alone_and_kernel_alone(sequential: float, tmp_path: Path) -> None:
    config = Config(users=200, items=50, clusters=2, cold=0, sequential=sequential)
    data, world = simulate(config, tmp_path), Oracle(config).world
    before, now = data.items[:-1][data.follows[1:]], data.items[data.follows]
    following = (world.successors[before - 1] == now[:, None]).any(axis=1)
    assert following.all() if sequential else following.mean() < 0.3


def test_lengths_are_skewed_around_the_mean_and_bounded(small: Data) -> None:
    lengths = np.bincount(small.users)
    assert len(lengths) == 9000 and lengths.min() >= 5 and lengths.max() == 40
    assert lengths.mean() == pytest.approx(8, rel=0.03) and np.median(lengths) < lengths.mean()


def test_times_ascend_within_the_weeks_and_follow_the_week(small: Data, oracle: Oracle) -> None:
    assert (np.diff(small.times)[small.follows[1:]] > 0).all()
    begin = int(datetime(2020, 1, 6, tzinfo=UTC).timestamp())
    assert begin <= small.times.min() and small.times.max() < begin + 52 * 7 * DAY + 40
    share = np.bincount((small.times - begin) // DAY % 7) / len(small.times)  # from Monday
    np.testing.assert_allclose(share, np.array([1, 1, 1, 1, 1.5, 2, 2]) / 9.5, atol=0.01)


def test_week_begins_on_the_weekday_of_the_start(tmp_path: Path) -> None:
    data = simulate(Config(users=2000, start=date(2020, 1, 4)), tmp_path)  # a Saturday
    weekday = [datetime.fromtimestamp(t, UTC).weekday() for t in data.times[::7].tolist()]
    assert np.isin(weekday, [5, 6]).mean() == pytest.approx(4 / 9.5, abs=0.03)


def test_gaps_are_log_normal_with_the_stated_spread(tmp_path: Path) -> None:
    config = Config(users=300, mean_length=100, shortest=90, longest=200, gap_spread=0.5, weeks=100)
    data = simulate(config, tmp_path)
    logs = np.log(np.diff(data.times)[data.follows[1:]])
    within = [part.std() for part in np.split(logs, np.flatnonzero(np.diff(data.users[data.follows])) + 1)]
    assert 0.5 < np.median(within) < 0.7  # the busy days add to the 0.5


def test_same_parameters_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    config = Config(users=50, items=30, clusters=3)
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        seeded = config.model_copy(update={"seed": seed})
        seeded.download(tmp_path / name)
        files.append(
            [path.read_bytes() for path in sorted((tmp_path / name).rglob("*")) if path.suffix in (".npy", ".parquet")]
        )
    assert len(files[0]) == 3 and files[0] == files[1]
    assert all(one != other for one, other in zip(files[0], files[2], strict=True))


def test_data_are_generated_once_and_other_parameters_lie_beside(tmp_path: Path) -> None:
    config = Config(users=50, items=30, clusters=3)
    config.download(tmp_path)
    (path,) = config.parse(tmp_path).events.paths
    path.write_bytes(b"mark")
    config.download(tmp_path)
    assert path.read_bytes() == b"mark"
    Config(users=51, items=30, clusters=3).download(tmp_path)
    assert path.read_bytes() == b"mark" and len([p for p in tmp_path.iterdir() if p.is_dir()]) == 2


def test_unfinished_data_are_generated_again(tmp_path: Path) -> None:
    config = Config(users=50, items=30, clusters=3)
    config.download(tmp_path)
    (path,) = config.parse(tmp_path).events.paths
    (path.parent / "config.json").unlink()
    path.write_bytes(b"cut short")
    with pytest.raises(UserError, match="download generates them"):
        config.parse(tmp_path)
    config.download(tmp_path)
    assert pq.read_table(path).num_rows > 0


def test_titles_and_features_tell_the_cluster(tmp_path: Path) -> None:
    config = Config(users=10, items=300, clusters=5)
    config.download(tmp_path)
    (path,) = config.parse(tmp_path).items.paths  # type: ignore[union-attr]
    table = pq.read_table(path).to_pydict()
    cluster, features = np.array(table["cluster"]), np.load(path.parent / "features.npy")
    assert table["item"] == [1000 + j for j in range(1, 301)]
    assert features.dtype == np.float32 and features.shape == (300, 16)
    centres = np.stack([features[cluster == c].mean(axis=0) for c in range(5)])
    nearest = ((features[:, None] - centres) ** 2).sum(axis=-1).argmin(axis=1)
    assert (nearest == cluster).mean() > 0.95
    words = [
        {word for title, own in zip(table["title"], cluster, strict=True) if own == c for word in title.split()[:3]}
        for c in range(5)
    ]
    assert all(len(own) == 12 for own in words) and len(set.union(*words)) == 5 * 12


def test_memory_does_not_grow_with_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "BLOCK_USERS", 250)
    peaks = []
    for users in (500, 4000):
        tracemalloc.start()
        Config(users=users, mean_length=30).download(tmp_path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_raw_ids_become_numbers(oracle: Oracle) -> None:
    assert oracle.user_numbers(["10000", "18999"]).tolist() == [0, 8999]
    assert oracle.item_numbers(["101", "124"]).tolist() == [1, 24]


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"mean_length": 300}, "shortest <= mean_length <= longest"),
        ({"items": 10, "cold": 0.5}, "every cluster needs an item that is not cold"),
        ({"drift": "2021-06-01"}, "drift must lie inside the simulated weeks"),
        ({"drift": "June"}, "drift: expected"),
    ],
)
def test_inconsistent_parameters_are_refused(given: dict[str, object], wrong: str) -> None:
    with pytest.raises(UserError, match=wrong):
        validate(Config, given, "the test")
