"""Where times are dealt anew nothing is told, whatever the periods and however the log has grown."""

import numpy as np
import pytest
from worlds import DAY, DAYS, growing

from turborec.checkup import check
from turborec.cutting import plan
from turborec.worlds import World, shuffled

SEAM = 80 * DAY


def of_log(log):
    """The log as what is looked at from the seam on."""
    items, users = np.arange(log.num_items + 1), len(log.offsets) - 1
    return World(log, 1, SEAM, SEAM, items, items > 0, np.ones(users, bool), np.zeros(users, np.int64))


def test_the_log_grows():
    log = growing(0)
    days = np.bincount(log.times // DAY, minlength=DAYS)
    assert days[-20:].mean() > 4 * days[20:40].mean()


@pytest.mark.parametrize("every", ["day", "week", 3, 4, 6, 9])
def test_nothing_is_told_of_times_that_are_dealt_anew(every):
    """One alarm of three for each kind of period is what a level of 5 % may bring; two are not."""
    worlds = [shuffled(of_log(growing(seed)), seed) for seed in range(3)]
    alarms = [check(world, plan(world, every), resamples=100).data.beyond.any() for world in worlds]
    assert sum(alarms) <= 1
