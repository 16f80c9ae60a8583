"""Histories drawn from a distribution that is known, so that a model can be compared with the best one possible.

With a = `sequential` (0 for a user's first event), the next item j of user u after item i at time t has the probability

    P(j | u, i, t) = (1 - a) * theta_u(sigma_t(c(j))) * q_t(j) + a * K_t(j | i)

    theta_u   the user's taste, a distribution over clusters: Dirichlet(taste, ..., taste)
    sigma_t   the cluster itself; after the drift the next one, c + 1 modulo C
    q_t       popularity within the cluster c(j): rank^-popularity over the items on sale at t, normalised per cluster;
              ranks are a random permutation, another one after the drift
    K_t       the kernel: of i's random successors the k-th has the weight 2^-k, 0 while it is not on sale, normalised;
              the first is always on sale. A successor drawn twice has both weights, and i itself may be one

Cold items are on sale from the share `cold_from` of the time on. Times are drawn first and do not depend on items.

Letters: U users, V items, C clusters, S successors, P periods (the dates of cold items and drift part the time), E events,
n users of a block. Users are numbered 0..U-1 and items 1..V, so an array [V] holds item j at j - 1.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from turborec import recipe
from turborec.data.schema import Columnar, RawTable, RawTables
from turborec.errors import UserError
from turborec.sources._fetch import locked
from turborec.sources._simulated_tables import write_events, write_features, write_items

Float = NDArray[np.float64]
Int = NDArray[np.int64]

VERSION = 1
"""Raised when the same parameters begin to mean other data."""

BLOCK_USERS = 8192
DAY = 86_400  # seconds
WEEK = 7 * DAY
ACTIVITY = (1.0, 1.0, 1.0, 1.0, 1.5, 2.0, 2.0)
"""How busy Monday to Sunday are."""
SHORTEST_STAY = 0.05
"""The share of the time left when a user comes that the user stays at least."""

# What random numbers are for keys their stream, so that changing one use does not shift the others.
WORLD, TASTES, LENGTHS, TIMES, ITEMS, TITLES, FEATURES = range(7)


class Config(recipe.Config):
    """Users with tastes, items in clusters, a taste for what came before, busy weekends, newcomers and drift.

    A raw id is a power of ten plus the number of the user or item, so ids have one length and keep their order.
    Beside the tables lies `features.npy`, float32 [V, features]: a vector per item, near those of its cluster.
    """

    kind: Literal["simulated"] = "simulated"
    seed: int = Field(default=0, ge=0)
    users: int = Field(default=1000, ge=1)
    items: int = Field(default=500, ge=2)
    mean_length: float = Field(default=20.0, ge=1)  # events per user, about: log-normal, cut at `longest`
    shortest: int = Field(default=5, ge=1)
    longest: int = Field(default=200, ge=1)
    clusters: int = Field(default=10, ge=1)
    taste: float = Field(default=0.3, gt=0)  # concentration: the smaller, the more one cluster prevails
    popularity: float = Field(default=1.0, ge=0)  # exponent of Zipf's law
    sequential: float = Field(default=0.5, ge=0, le=1)  # the share of events that follow from the one before
    successors: int = Field(default=3, ge=1)
    start: date = date(2020, 1, 6)
    weeks: int = Field(default=52, ge=1)
    gap_spread: float = Field(default=1.0, ge=0)  # standard deviation of the logarithm of the time between events
    cold: float = Field(default=0.1, ge=0, lt=1)  # the share of items that come late
    cold_from: float = Field(default=0.8, gt=0, lt=1)
    drift: date | None = None
    features: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.shortest <= self.mean_length <= self.longest:
            raise ValueError("shortest <= mean_length <= longest is needed")
        if self.clusters + round(self.cold * self.items) > self.items:
            raise ValueError("every cluster needs an item that is not cold: fewer clusters, more items or less cold")
        if self.drift and not 0 < (self.drift - self.start).days < 7 * self.weeks:
            raise ValueError("drift must lie inside the simulated weeks")
        return self

    def download(self, folder: Path) -> None:
        """Generate the files, block by block, unless they lie there already."""
        place = self._place(folder)
        with locked(place):
            if not (place / "config.json").is_file():
                _generate(World(self), place)

    def parse(self, folder: Path) -> RawTables:
        """Describe the generated files."""
        place = self._place(folder)
        if not (place / "config.json").is_file():
            raise UserError(f"The simulated data should lie in {place}, but do not: download generates them.")
        events = {"user": "user", "item": "item", "time": "time"}
        items = {"item": "item", "title": "title", "cluster": "cluster"}
        return RawTables(
            events=RawTable((place / "events.parquet",), Columnar(), events),
            items=RawTable((place / "items.parquet",), Columnar(), items),
            terms="Simulated by turborec: free for any use.",
        )

    def _place(self, folder: Path) -> Path:
        """The folder of these parameters, since others may lie beside."""
        text = json.dumps([VERSION, self.model_dump(mode="json")], sort_keys=True)
        return folder / sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Period:
    """What holds between two dates."""

    shares: Float  # [V] q: popularity within the item's cluster
    shift: int  # by how many clusters tastes have moved
    kernel: Float  # [V, S] probabilities of each item's successors


class World:
    """Everything about the distribution but the users' tastes, which are drawn block by block."""

    def __init__(self, config: Config) -> None:
        """Draw the clusters, ranks, successors and cold items."""
        self.config = config
        random = self.random(WORLD)
        order = random.permutation(config.items)
        self.cluster: Int = np.empty(config.items, dtype=np.int64)  # [V]
        self.cluster[order] = np.arange(config.items) % config.clusters
        self.cold = np.zeros(config.items, dtype=bool)  # [V]
        # The first C items of `order` are one of each cluster, so none is without an item on sale.
        self.cold[order[config.clusters :][: round(config.cold * config.items)]] = True
        self.successors: Int = random.integers(0, config.items, (config.items, config.successors)) + 1  # [V, S]
        self.successors[:, 0] = random.choice(np.flatnonzero(~self.cold) + 1, config.items)
        self.ranks: list[Float] = [random.permutation(config.items) + np.float64(1) for _ in range(2)]  # now, drifted
        self.begin = int(datetime(config.start.year, config.start.month, config.start.day, tzinfo=UTC).timestamp())
        self.newcomers = self.begin + int(config.cold_from * config.weeks * WEEK)
        self.drift = None if config.drift is None else self.begin + (config.drift - config.start).days * DAY
        self.edges = np.array(sorted({self.newcomers, *([] if self.drift is None else [self.drift])}))  # [P - 1]
        self.periods = [self._period(int(t)) for t in (self.begin, *self.edges)]

    def random(self, stream: int, block: int = 0) -> np.random.Generator:
        """The random numbers of one use."""
        return np.random.default_rng([self.config.seed, stream, block])

    def period(self, times: Int) -> Int:
        """The period each time falls in."""
        return np.searchsorted(self.edges, times, side="right")

    def tastes(self, block: int) -> Float:
        """The tastes of the users from `block * BLOCK_USERS` on: [n, C]."""
        users = min(BLOCK_USERS, self.config.users - block * BLOCK_USERS)
        return self.random(TASTES, block).dirichlet(np.full(self.config.clusters, self.config.taste), users)

    def _period(self, begin: int) -> Period:
        config = self.config
        drifted = int(self.drift is not None and begin >= self.drift)
        on_sale = ~self.cold | (begin >= self.newcomers)
        weights = self.ranks[drifted] ** -config.popularity * on_sale
        shares = weights / np.bincount(self.cluster, weights, config.clusters)[self.cluster]
        kernel = 0.5 ** np.arange(1, config.successors + 1) * on_sale[self.successors - 1]
        return Period(shares, drifted, kernel / kernel.sum(axis=1, keepdims=True))


class Oracle:
    """The true distribution of the next item; no model can rank better on average than by it."""

    def __init__(self, config: Config) -> None:
        """`config` as the data were generated with."""
        self.world = World(config)

    def log_probability(self, users: Int, previous: Int, times: Int) -> Float:
        """The logarithm of P(j | user, previous item, time of the next event): [B], [B], [B] -> [B, V].

        `previous` is 0 where a user has no history yet. An item that is not on sale has -inf.
        """
        world, config = self.world, self.world.config
        follows = np.where(previous > 0, config.sequential, 0.0)
        tastes, periods = self._tastes(users), world.period(times)
        result = np.empty((len(users), config.items))
        for place, period in enumerate(world.periods):
            rows = np.flatnonzero(periods == place)
            liking = np.roll(tastes[rows], -period.shift, axis=1)[:, world.cluster]
            chance = (1 - follows[rows, None]) * liking * period.shares
            last = previous[rows] - 1  # -1 where there is none: any row will do, as it weighs nothing
            np.add.at(
                chance,
                (np.arange(len(rows))[:, None], world.successors[last] - 1),
                follows[rows, None] * period.kernel[last],
            )
            with np.errstate(divide="ignore"):
                result[rows] = np.log(chance)
        return result

    def user_numbers(self, raw: Iterable[str]) -> Int:
        """The numbers 0..U-1 of raw user ids."""
        return np.array([int(text) for text in raw], dtype=np.int64) - _base(self.world.config.users)

    def item_numbers(self, raw: Iterable[str]) -> Int:
        """The numbers 1..V of raw item ids."""
        return np.array([int(text) for text in raw], dtype=np.int64) - _base(self.world.config.items)

    def _tastes(self, users: Int) -> Float:
        result = np.empty((len(users), self.world.config.clusters))
        for block in np.unique(users // BLOCK_USERS):
            rows = users // BLOCK_USERS == block
            result[rows] = self.world.tastes(int(block))[users[rows] % BLOCK_USERS]
        return result


def _base(count: int) -> int:
    """What is added to numbers up to `count` so that all ids have one length."""
    return int(10 ** len(str(count)))


def _generate(world: World, place: Path) -> None:
    """Write all files; the last is the sign that none is missing."""
    config = world.config
    write_events(place / "events.parquet", _events(world), config.users)
    numbers = np.arange(1, config.items + 1) + _base(config.items)
    write_items(place / "items.parquet", numbers, world.cluster, world.random(TITLES))
    write_features(place / "features.npy", world.cluster, config.features, world.random(FEATURES))
    (place / "config.json").write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _events(world: World) -> Iterator[tuple[Int, Int, Int]]:
    """Raw users, raw items and times of all events by user and time, a block of users at once."""
    sampler = Sampler(world)
    for block in range(-(-world.config.users // BLOCK_USERS)):
        tastes = world.tastes(block)
        offsets = np.concatenate([[0], np.cumsum(_lengths(world, block, len(tastes)))])
        times = _times(world, block, offsets)
        items = sampler.items(block, tastes, offsets, times)
        users = np.repeat(np.arange(len(tastes)), np.diff(offsets)) + block * BLOCK_USERS
        yield users + _base(world.config.users), items + _base(world.config.items), times


def _lengths(world: World, block: int, users: int) -> Int:
    """Numbers of events: `shortest` and a log-normal rest, whose logarithm has a standard deviation of 1: [n]."""
    config = world.config
    rest = world.random(LENGTHS, block).lognormal(-0.5, 1.0, users) * (config.mean_length - config.shortest)
    return np.minimum(config.shortest + np.rint(rest).astype(np.int64), config.longest)


def _times(world: World, block: int, offsets: Int) -> Int:
    """Seconds: log-normal gaps between a random arrival and departure, more events where the week is busy: [E]."""
    random, lengths, config = world.random(TIMES, block), np.diff(offsets), world.config
    arrival = random.random(len(lengths))
    stay = (1 - arrival) * random.uniform(SHORTEST_STAY, 1.0, len(lengths))
    passed = np.cumsum(random.lognormal(0.0, config.gap_spread, offsets[-1]))
    before = np.concatenate([[0.0], passed])[offsets]
    user = np.repeat(np.arange(len(lengths)), lengths)
    weeks = (arrival[user] + stay[user] * (passed - before[user]) / np.diff(before)[user]) * config.weeks
    # Even time is warped so that a day gets as large a share of its week's events as it is busy.
    weekday = config.start.weekday()
    busy = np.cumsum((0.0, *ACTIVITY[weekday:], *ACTIVITY[:weekday]))
    seconds = np.floor(weeks) * WEEK + np.interp(weeks % 1, busy / busy[-1], np.arange(8) * DAY)
    # Event k of a user is k seconds late, since equal times would leave the order open.
    late = np.arange(offsets[-1]) - offsets[user]
    times: Int = world.begin + seconds.astype(np.int64) + late
    return times


class Sampler:
    """Draws items from P: `ends` are running sums in which group g of shares fills g to g + 1."""

    def __init__(self, world: World) -> None:
        """Lay out the groups: of items, a period and a cluster; of successors, a period and the item before."""
        self.world = world
        periods, config = world.periods, world.config
        self.by_cluster = np.argsort(world.cluster, kind="stable")  # [V]
        sizes = np.bincount(world.cluster, minlength=config.clusters)
        self.item_ends = _ends(np.concatenate([p.shares[self.by_cluster] for p in periods]), np.tile(sizes, len(periods)))
        kernels = np.concatenate([p.kernel.ravel() for p in periods])
        self.kernel_ends = _ends(kernels, np.full(len(periods) * config.items, config.successors))

    def items(self, block: int, tastes: Float, offsets: Int, times: Int) -> Int:
        """Item numbers of a block: drawn by taste for all events, then replaced where an event follows: [E]."""
        world, config = self.world, self.world.config
        random, lengths = world.random(ITEMS, block), np.diff(offsets)
        by_taste, by_popularity, by_kernel, follows = random.random((4, offsets[-1]))
        period = world.period(times)
        user = np.repeat(np.arange(len(lengths)), lengths)
        taste = _choose(_ends(tastes.ravel(), np.full(len(lengths), config.clusters)), user, by_taste) % config.clusters
        cluster = (taste - np.array([p.shift for p in world.periods])[period]) % config.clusters
        drawn = _choose(self.item_ends, period * config.clusters + cluster, by_popularity)
        items = self.by_cluster[drawn % config.items] + 1
        # The event after depends on this one, so all users advance together, the longest histories first.
        order = np.argsort(-lengths, kind="stable")
        going = np.searchsorted(-lengths[order], -np.arange(lengths.max()))  # how many have an event at each step
        successors = world.successors.ravel()
        for step in range(1, len(going)):
            event = offsets[order[: going[step]]] + step
            event = event[follows[event] < config.sequential]
            before = period[event] * config.items + items[event - 1] - 1
            items[event] = successors[_choose(self.kernel_ends, before, by_kernel[event]) % successors.size]
        return items


def _ends(shares: Float, sizes: Int) -> Float:
    """Where each share ends when the groups, of the given sizes, fill one unit each."""
    total, last = np.cumsum(shares), np.cumsum(sizes) - 1
    before = np.concatenate([[0.0], total[last[:-1]]])
    group = np.repeat(np.arange(len(sizes)), sizes)
    ends: Float = group + (total - before[group]) / (total[last] - before)[group]
    return ends


def _choose(ends: Float, group: Int, uniform: Float) -> Int:
    """The places in `ends` that uniform numbers in [0, 1) fall on within their groups."""
    # The sum of a large group number and 0.999... may round up to the next group.
    found: Int = np.searchsorted(ends, np.minimum(group + uniform, np.nextafter(group + 1.0, 0.0)), side="right")
    return found
