"""Items that users do not have, drawn evenly: one draw each, whatever the user has.

Letters: B rows, E distinct (user, item) pairs of training, W items that training knows, n_u of them that user u has.
"""

import numpy as np
from numpy.typing import NDArray

from turborec.data.batch import Interactions

Int64 = NDArray[np.int64]

GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, doi 10.1145/2660193.2660195)."""


class Unseen:
    """Even draws among the items of the training part that a user has not interacted with there.

    Published code draws until an item is none of the user's. Here the r-th of the W - n_u others is found at once, for r
    drawn evenly: with the places p_0 < p_1 < … of the user's own items among the W, it lies r + #{j: p_j - j <= r} places on.
    """

    def __init__(self, graph: Interactions, users: int) -> None:
        """`graph` by (user, item); `users` is how many there are."""
        owners = graph.users.numpy()
        self.items, place = np.unique(graph.items.numpy(), return_inverse=True)  # [W] ids, ascending
        self.starts = np.searchsorted(owners, np.arange(users + 1)).astype(np.int64)  # [U + 1]
        skipped = place - (np.arange(len(owners)) - self.starts[owners])  # p_j - j, ascending within a user
        self.codes = owners.astype(np.int64) * (len(self.items) + 1) + skipped  # [E], ascending

    def draw(self, users: Int64, keys: Int64) -> Int64:
        """An item for each row, a function of its user and its key: [B], [B] -> [B]; 0 for who has all items."""
        width = len(self.items)
        others = width - (self.starts[users + 1] - self.starts[users])
        # Of 64 even bits a remainder is even to one part in 2^64 / W.
        chosen = (mixed(keys) % np.maximum(others, 1).astype(np.uint64)).astype(np.int64)
        passed = np.searchsorted(self.codes, users * (width + 1) + chosen, side="right") - self.starts[users]
        place = np.minimum(chosen + passed, width - 1)
        return np.where(others > 0, self.items[place].astype(np.int64), 0)


def mixed(keys: Int64) -> NDArray[np.uint64]:
    """64 bits that look random, a function of each key: [B] -> [B]."""
    x = keys.view(np.uint64) + np.uint64(GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return x ^ (x >> np.uint64(31))
