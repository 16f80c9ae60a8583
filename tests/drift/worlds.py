"""Logs of a stationary world, and of worlds in which something changes on a known day."""

import numpy as np

from turborec.drift.counts import Log

DAY = 86_400
DAYS = 120


def world(seed, kind="none", day=90, users=1500, items=200, rate=0.35):
    """Events of users who come and go at a constant rate; from `day` on `kind` is otherwise: items, preference or activity.

    Users stay three weeks on average and have `rate` events a day; items are drawn by a law of Zipf, mixed with what is like
    the item before.
    """
    generator = np.random.default_rng(seed)
    # Who came before the log begins is there at its beginning, so that it begins in equilibrium.
    begin = generator.uniform(-120, DAYS, users * 2)
    stay = generator.exponential(21.0, len(begin))
    popularity = 1 / np.arange(1, items + 1) ** 0.8
    popularity /= popularity.sum()
    changed = popularity.copy()
    if kind == "preference":
        top = np.arange(20)
        changed[top] = popularity[generator.permutation(top)]
    rows = []
    for first, length in zip(begin, stay, strict=True):
        lo, hi = max(first, 0.0), min(first + length, DAYS)
        if hi <= lo:
            continue
        when = lo + np.sort(generator.uniform(0, hi - lo, generator.poisson(rate * (hi - lo))))
        if kind == "activity":
            extra = generator.uniform(0, hi - lo, generator.poisson(rate * (hi - lo))) + lo
            when = np.sort(np.concatenate([when, extra[extra >= day]]))
        when = np.sort(np.floor(when) + generator.beta(2, 2, len(when)))  # by day more than by night
        if not len(when):
            continue
        late = when >= day
        shown = (
            np.where(late, generator.choice(items, len(when), p=changed), generator.choice(items, len(when), p=popularity)) + 1
        )
        if kind == "items":
            fresh = late & (generator.random(len(when)) < 0.15)
            shown[fresh] = items + 1 + generator.integers(0, 30, fresh.sum())
        rows.append((shown, (when * DAY).astype(np.int64)))
    offsets = np.concatenate([[0], np.cumsum([len(shown) for shown, _ in rows])]).astype(np.int64)
    return Log(offsets, np.concatenate([r[0] for r in rows]), np.concatenate([r[1] for r in rows]), items + 30)


def growing(seed, users=1500, items=200):
    """Events of users who come more often from day to day, all stay, and have twice the events a day at the end of the log."""
    generator = np.random.default_rng(seed)
    begin = DAYS * np.sqrt(generator.random(users))
    number = generator.poisson(0.004 * (DAYS - begin) * (DAYS + (DAYS + begin) / 2) / 10 + 1)
    days = [first + (DAYS - first) * generator.beta(1.3, 1, often) for first, often in zip(begin, number, strict=True)]
    times = np.concatenate([np.sort(np.floor(one) + generator.beta(2, 2, len(one))) for one in days]) * DAY
    popularity = 1 / np.arange(1, items + 1) ** 0.8
    shown = generator.choice(items, len(times), p=popularity / popularity.sum()) + 1
    offsets = np.concatenate([[0], np.cumsum(number)]).astype(np.int64)
    return Log(offsets, shown, times.astype(np.int64), items)
